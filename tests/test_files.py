"""Files that are whole or not there, and outputs behind symbolic links: refused where DVC would refuse them."""

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

import pytest
from dvc.exceptions import ReproductionError
from dvc.repo import Repo
from dvc.scm import Git

from resnet_cifar.errors import InputError
from resnet_cifar.files import check_no_link, sha256, sha256_of, whole, write_whole


def test_a_file_appears_at_the_end_and_nothing_else_stays(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with whole(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path  # a rename over file systems would be a copy
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def fail(path: Path) -> None:
    """Write half of a file."""
    with suppress(ZeroDivisionError), whole(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError


def test_what_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_text("old")
    fail(path)
    for name in ("write_bytes", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(Path, name, lambda *_: full())
            with pytest.raises(OSError, match="No space left") as caught:
                write_whole(path, b"new")
        assert Path(caught.value.filename) == path
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def full() -> None:
    raise OSError(28, "No space left on device")


def test_a_new_name_is_not_there_after_a_failure(tmp_path):
    fail(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    """After a power cut an empty file of the right name would be worse than none."""
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        steps.append(f"flush {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_whole(tmp_path / "a", b"content")
    assert steps == ["flush .a.part", "rename", f"flush {tmp_path.name}"]


def test_two_processes_may_write_the_same_file(tmp_path, monkeypatch):
    with whole(tmp_path / "a", shared=True) as mine:
        mine.write_text("mine")
        monkeypatch.setattr(os, "getpid", lambda: 0)
        with whole(tmp_path / "a", shared=True) as theirs:
            theirs.write_text("theirs")
        assert (tmp_path / "a").read_text() == "theirs"
    assert (tmp_path / "a").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_folder_in_its_place_is_named_and_stays(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="Is a directory") as caught:
        write_whole(tmp_path / "a", b"")
    assert Path(caught.value.filename) == tmp_path / "a"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_whole(tmp_path / "nowhere" / "a", b"")
    assert "nowhere" in str(caught.value.filename)


def test_what_a_killed_process_left_is_written_over(tmp_path):
    (tmp_path / ".a.part").write_text("half, and longer than all")
    write_whole(tmp_path / "a", b"all")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["all"]


def test_digests(tmp_path):
    (tmp_path / "b").mkdir()
    one, two = tmp_path / "a", tmp_path / "b" / "c"
    one.write_bytes(b"1")
    two.write_bytes(b"23")
    assert sha256(two) == hashlib.sha256(b"23").hexdigest()
    assert sha256_of([one, two], tmp_path) == hashlib.sha256(b"a 1\n1b/c 2\n23").hexdigest()
    assert sha256_of([two, one], tmp_path) != sha256_of([one, two], tmp_path)


# ---- Symbolic links

OUT = Path("data/raw")


def link_away(path: Path, target: Path) -> None:
    target.mkdir(parents=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A git repository with DVC, the working directory."""
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Git.init(str(folder)).close()
    Repo.init().close()
    (folder / ".gitignore").write_text("/data/\n/runs/\n")
    return folder


@pytest.mark.parametrize(
    ("out", "link", "target", "refused"),
    [
        ("data/raw", "elsewhere", "../disk", False),
        ("data/raw", "data", "../disk", True),
        ("data/raw", "data", "other", False),  # within the repository
        ("data/raw", "data/raw", "../disk", False),  # the output itself
        ("runs/cell/weights", "runs", "../disk", True),
        ("runs/cell/weights", "runs/cell", "../disk", True),
    ],
)
def test_refused_is_what_dvc_refuses(repository, out, link, target, refused):
    command = f"mkdir -p {out} && echo 1 > {out}/file"
    (repository / "dvc.yaml").write_text(f"stages: {{make: {{cmd: '{command}', outs: [{out}]}}}}")
    link_away(repository / link, (repository / target).resolve())
    with Repo() as dvc:
        if refused:
            with pytest.raises(
                InputError, match=rf"^{re.escape(str(repository / link))} is a symbolic link .*`dvc cache dir"
            ):
                check_no_link(Path(out))
            with pytest.raises(ReproductionError):
                dvc.reproduce()
        else:
            check_no_link(Path(out))
            dvc.reproduce()


def test_a_link_higher_up_or_seen_from_a_folder_below_is_found(repository, monkeypatch):
    link_away(repository / "data", repository.parent / "disk")
    with pytest.raises(InputError, match="/data is a symbolic link"):
        check_no_link(Path("data/one/two/three"))
    (repository / "below").mkdir()
    monkeypatch.chdir(repository / "below")
    with pytest.raises(InputError, match="/data is a symbolic link"):
        check_no_link(Path("../data/raw"))


def test_a_repository_that_is_itself_reached_through_a_link_is_no_harm(repository, monkeypatch):
    (repository.parent / "link").symlink_to(repository)
    monkeypatch.chdir(repository.parent / "link")
    check_no_link(OUT)
    check_no_link(repository.parent / "link" / OUT)


def test_what_is_in_no_repository_is_not_for_dvc_to_refuse(tmp_path, monkeypatch):
    link_away(tmp_path / "elsewhere" / "data", tmp_path / "disk")
    check_no_link(tmp_path / "elsewhere" / OUT)
    monkeypatch.chdir(tmp_path / "elsewhere")
    check_no_link(OUT)
