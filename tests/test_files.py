"""Files that are whole or not there."""

import hashlib
import os
from pathlib import Path

import pytest

from resnet_cifar.files import sha256, sha256_of, whole, write_whole


def test_a_file_appears_at_the_end_and_nothing_else_stays(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with whole(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path  # a rename over file systems would be a copy
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
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
    with pytest.raises(ZeroDivisionError), whole(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    """After a power cut an empty file of the right name would be worse than none."""
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        steps.append(f"flush {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_whole(tmp_path / "a", b"content")
    assert steps == ["flush .a.part", "rename", f"flush {tmp_path.name}"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_whole(tmp_path / "nowhere" / "a", b"")
    assert "nowhere" in str(caught.value.filename)


def test_digests(tmp_path):
    (tmp_path / "b").mkdir()
    one, two = tmp_path / "a", tmp_path / "b" / "c"
    one.write_bytes(b"1")
    two.write_bytes(b"23")
    assert sha256(two) == hashlib.sha256(b"23").hexdigest()
    assert sha256_of([one, two], tmp_path) == hashlib.sha256(b"a 1\n1b/c 2\n23").hexdigest()
    assert sha256_of([two, one], tmp_path) != sha256_of([one, two], tmp_path)
