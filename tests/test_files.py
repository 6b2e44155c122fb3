"""Outputs behind symbolic links: refused where DVC would refuse them, and nowhere else."""

from pathlib import Path

import pytest
from dvc.exceptions import ReproductionError
from dvc.repo import Repo
from dvc.scm import Git

from resnet_cifar.errors import InputError
from resnet_cifar.files import check_no_link

OUT = Path("data/raw")
PIPELINE = "stages: {download: {cmd: mkdir -p data/raw && echo 1 > data/raw/file, outs: [data/raw]}}"


def link_away(path: Path, target: Path) -> None:
    target.mkdir(parents=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A git repository with DVC and a stage that makes ``OUT``, the working directory."""
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Git.init(str(folder)).close()
    Repo.init().close()
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / ".gitignore").write_text("/data/\n")
    return folder


@pytest.mark.parametrize(
    ("link", "target", "refused"),
    [
        ("elsewhere", "../disk", False),
        ("data", "../disk", True),
        ("data", "other", False),  # within the repository
        ("data/raw", "../disk", False),  # the output itself
    ],
)
def test_refused_is_what_dvc_refuses(repository, link, target, refused):
    link_away(repository / link, (repository / target).resolve())
    with Repo() as dvc:
        if refused:
            with pytest.raises(InputError, match=rf"^{repository}/data is a symbolic link .*`dvc cache dir"):
                check_no_link(OUT)
            with pytest.raises(ReproductionError):
                dvc.reproduce()
        else:
            check_no_link(OUT)
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
