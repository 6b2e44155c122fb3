"""Studies side by side: how one is kept and restored, in a clone, and the page that compares them."""

import copy
import fcntl
import hashlib
import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from clone import Clone, ran
from conftest import ROOT
from dvc.config import Config
from dvc.data_cloud import DataCloud
from dvc.exceptions import DvcException
from dvc.fs import generic
from dvc.stage import cache
from dvc.stage.serialize import to_single_stage_lockfile
from test_report import make_results, read, study_of

from resnet_cifar.errors import InputError
from resnet_cifar.report import tables
from resnet_cifar.studies import index, remote
from resnet_cifar.studies.keep import LOCK, STUDIES, _alone, _run, keep

TINY = """\
# @package _global_
# One network, beside the clone's own study of another.
defaults:
  - quick
  - _self_

preset: tiny

model:
  net: [plain]
  n: [1]

train:
  seeds: [1]
"""
MADE = Path("scratch/studies/tiny")


def silent(_: str) -> None:
    """Takes the lines of progress."""


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stages(lock: Path) -> dict[str, dict]:
    return yaml.safe_load(lock.read_text())["stages"]


def trained(lock: Path) -> dict[str, str]:
    """The MD5 of each cell's run.json, which has the seconds of its training: another one each time it is trained."""
    return {
        name: out["md5"]
        for name, stage in stages(lock).items()
        if name.startswith("train@") and name.endswith("-1")
        for out in stage["outs"]
        if out["path"].endswith("run.json")
    }


def unsaved(clone: Clone) -> set[str]:
    """What git sees beside the last commit, folders that are new as a whole."""
    return {line[3:] for line in clone.run("git", "status", "--porcelain").stdout.splitlines()}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Iterator[Clone]:
    """A clone with a study of its own and the preset of another one, entered, with the engine that users have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RESNET_CIFAR_SIMD")
        made = Clone.reproduced(tmp_path_factory)
        (made.folder / "conf/preset/tiny.yaml").write_text(TINY)
        made.save()
        made.enter(patch)
        yield made


@pytest.fixture(scope="module")
def kept(clone) -> Clone:
    """After `tiny` was kept and committed, at the second attempt: at the first, the remote was full after some files.

    Its networks were trained elsewhere, and are not trained again.
    """
    before = files(Path("reports"))
    elsewhere = Path("scratch/elsewhere")
    clone.compose("preset=tiny")
    clone.run(sys.executable, "stages/train.py", "--runs", str(elsewhere), "--cells", "plain-1-1")
    clone.compose("model.n=1")

    def full(*_: object) -> None:
        raise DvcException("it is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "_push_entry", full)
        with pytest.raises(InputError, match="DVC could not go on: it is full"):
            keep("tiny", elsewhere, silent)
    assert unsaved(clone) == {"store/"}
    assert files(Path("reports")) == before
    first = trained(MADE / LOCK)
    assert first == {"train@plain-1-1": hashlib.md5((elsewhere / "plain-1-1/run.json").read_bytes()).hexdigest()}
    keep("tiny", None, silent)
    assert trained(STUDIES / "tiny" / LOCK) == first  # the second attempt went on from the first one
    assert unsaved(clone) == {"reports/studies/", "store/"}
    assert not MADE.exists()
    clone.save()
    return clone


# ---- Kept and restored


@pytest.mark.usefixtures("kept")
def test_the_folder_has_the_report_its_parameters_and_the_cells_part_of_the_lock():
    folder = STUDIES / "tiny"
    names = {path.name for path in folder.iterdir()}
    assert names == {*("metrics.md", "metrics.json", "results.csv", "curves.csv", "figures"), "params.yaml", LOCK}
    assert pd.read_csv(folder / "results.csv")["cell"].tolist() == ["plain-1-1"]
    assert yaml.safe_load((folder / "params.yaml").read_text())["preset"] == "tiny"
    assert set(stages(folder / LOCK)) == {"train@plain-1-1", "evaluate@plain-1-1"}
    assert "[tiny](tiny/metrics.md)" in (STUDIES / "README.md").read_text()


def test_the_current_study_is_what_it_was(kept):
    assert kept.would_run() == []
    assert yaml.safe_load(Path("params.yaml").read_text())["preset"] == "quick"
    assert sorted(path.name for path in Path("runs").iterdir()) == ["resnet-1-0"]
    assert pd.read_csv("reports/results.csv")["cell"].tolist() == ["resnet-1-0"]


@pytest.mark.usefixtures("kept")
def test_the_remote_has_the_study_alone():
    """Not the clone's own network, whose entries lie in the same cache, and no data."""
    entries = [yaml.safe_load(path.read_text()) for path in Path("store/runs").rglob("*") if path.is_file()]
    outs = {out["path"] for entry in entries for out in entry["outs"]}
    names = ("weights.safetensors", "history.csv", "run.json")
    assert outs == {"results/plain-1-1"} | {f"runs/plain-1-1/{name}" for name in names}
    assert len(entries) == 2
    assert len(list(Path("store/files").rglob("*.dir"))) == 1
    assert sum(path.is_file() for path in Path("store/files").rglob("*")) == 3 + 1 + 2


def test_elsewhere_it_is_restored_and_not_trained(kept, tmp_path):
    """In a clone by git, which has the data and nothing else; its report is the one that is kept, byte by byte."""
    kept.run("git", "clone", "--quiet", ".", str(tmp_path / "other"))
    other = copy.copy(kept)
    other.folder = tmp_path / "other"
    shutil.copytree("data/raw", other.folder / "data/raw")
    other.dvc("commit", "--force", "download")
    assert ran(other.dvc("exp", "run", "--pull", "-S", "preset=tiny")) == ["preprocess", "report"]
    report, there = files(other.folder / "reports"), files(Path("reports/studies/tiny"))
    assert {name: report[name] for name in there if name not in ("params.yaml", LOCK)} == {
        name: content for name, content in there.items() if name not in ("params.yaml", LOCK)
    }
    other.run("git", "checkout", ".")
    other.run("git", "clean", "-fd", "reports", "-e", "studies")
    assert unsaved(other) == set()


def test_an_edit_that_changes_no_byte_is_kept_anew_without_training(kept, tmp_path):
    before, old = trained(STUDIES / "tiny" / LOCK), stages(STUDIES / "tiny" / LOCK)
    name = "src/resnet_cifar/numerics/batches.py"
    shutil.copytree(".dvc/cache/runs", tmp_path / "runs")
    with kept.edited([name]):
        kept.save()
        shutil.rmtree(".dvc/cache/runs")  # so that the kept part of the lock is all there is
        keep("tiny", None, silent)
        md5 = hashlib.md5(Path(name).read_bytes()).hexdigest()
    assert trained(STUDIES / "tiny" / LOCK) == before
    new = stages(STUDIES / "tiny" / LOCK)
    for cell, stage in new.items():
        if cell.startswith("train@"):
            assert {"path": name, "md5": md5}.items() <= {
                key: value for dep in stage["deps"] if dep["path"] == name for key, value in dep.items()
            }.items()
            assert stage["outs"] == old[cell]["outs"]
    shutil.copytree(tmp_path / "runs", ".dvc/cache/runs", dirs_exist_ok=True)
    kept.save()


def test_what_was_in_the_way_or_kept_meanwhile_stops_and_loses_nothing(kept, monkeypatch, capfd):
    """Killed after another data set was made and before DVC knew of it; later, another study is kept during a push."""

    def killed(*_: object) -> None:
        raise InputError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("resnet_cifar.studies.keep._run", killed)
        with pytest.raises(InputError, match="killed"):
            keep("tiny", None, silent)
    (MADE / "data").mkdir()
    (MADE / "data/cifar10.safetensors").write_text("another data set")
    lock = MADE / ".dvc/tmp/lock"
    lock.mkdir(parents=True)
    with pytest.raises(InputError, match=r"`dvc checkout .*failed, as the lines above say"):
        keep("tiny", None, silent)
    assert "ERROR: " in capfd.readouterr().err
    lock.rmdir()

    def push_beside_another(clone: Path) -> None:
        remote.push(clone)
        make_study(STUDIES, "other", {}, *SHORT, "model.n=3")

    monkeypatch.setattr("resnet_cifar.studies.keep.push", push_beside_another)
    keep("tiny", None, silent)
    assert (STUDIES / "README.md").read_text() == index.render(STUDIES)
    assert "[other](other/metrics.md)" in (STUDIES / "README.md").read_text()
    kept.run("git", "checkout", ".")
    kept.run("git", "clean", "-fdq", "reports")
    assert unsaved(kept) == set()


def test_the_data_set_that_a_user_has_is_found_from_the_clone(tmp_path, monkeypatch):
    (tmp_path / "clone/src").mkdir(parents=True)
    (tmp_path / "clone/src/dvc.py").write_text("import os\nopen('seen', 'w').write(os.environ['CIFAR10_SOURCE'])\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIFAR10_SOURCE", "mine.tar.gz")
    with _alone(Path("clone")) as lock:
        _run(Path("clone"), lock, "dvc")
    assert Path("clone/seen").read_text() == str(tmp_path / "mine.tar.gz")


STAND_IN = """\
import pathlib, signal, time

signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    pathlib.Path("began").touch()
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path("asked").touch()
    while not pathlib.Path("may_end").exists():
        time.sleep(0.02)
    pathlib.Path("saved").touch()
"""
HOLDING = """\
import signal
from pathlib import Path
from resnet_cifar.errors import exit_with
from resnet_cifar.studies import keep

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # of tests under nohup, too
with keep._alone(Path("made")) as lock:
    exit_with(lambda: keep._run(Path("."), lock, "dvc"))
"""


@pytest.fixture
def running(tmp_path) -> Iterator[subprocess.Popen]:
    """A process in a folder of its own that holds a study's lock and runs what takes cells in training for DVC."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src/dvc.py").write_text(STAND_IN)
    with subprocess.Popen([sys.executable, "-c", HOLDING], cwd=tmp_path) as process:
        appears(tmp_path / "began")
        yield process
        (tmp_path / "may_end").touch()


def appears(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_waits_until_what_runs_has_saved(running, tmp_path, number):
    """As when cells are in training: Ctrl-C, or the end of a job."""
    running.send_signal(number)
    appears(tmp_path / "asked")
    assert running.poll() is None
    (tmp_path / "may_end").touch()
    assert running.wait() == 128 + number
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_killed_it_takes_what_runs_along_which_holds_the_lock_until_it_has_saved(running, tmp_path, number):
    running.send_signal(number)
    assert running.wait() == -number
    appears(tmp_path / "asked")
    with pytest.raises(InputError, match="another process is making the study made"), _alone(tmp_path / "made"):
        pass
    (tmp_path / "may_end").touch()
    with (tmp_path / "made.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # waits
    assert (tmp_path / "saved").exists()


# ---- Refused


@pytest.mark.usefixtures("clone")
def test_a_new_file_whose_name_is_not_utf8_is_a_change_too():
    new = Path(os.fsdecode(b"caf\xe9.txt"))
    new.touch()
    with pytest.raises(InputError, match=r"not committed \(caf.\.txt\)"):
        keep("tiny", None, silent)
    new.unlink()


def test_a_checkout_with_changes_is_refused(clone):
    new = Path("conf/preset/own.yaml")
    new.write_text("")
    with pytest.raises(InputError, match=r"not committed \(conf/preset/own\.yaml\): commit or stash them"):
        keep("tiny", None, silent)
    with (
        clone.edited(["conf/config.yaml"]),
        pytest.raises(InputError, match=r"\(conf/config\.yaml and 1 more\)"),
    ):
        keep("tiny", None, silent)
    new.unlink()
    assert unsaved(clone) == set()


def test_what_undoes_an_experiment_leaves_a_study_that_was_kept(clone):
    study, figure = STUDIES / "own/metrics.md", Path("reports/figures/new.svg")
    for path in (study, figure):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    with pytest.raises(InputError, match=r"^commit the study you kept \(reports/studies/own/metrics\.md\): [^`]*$"):
        keep("tiny", None, silent)
    kept = study.rename("scratch/own.md")
    with pytest.raises(InputError, match="After an experiment") as refused:
        keep("tiny", None, silent)
    kept.rename(study)
    (command,) = re.findall(r"`(git checkout .*) && dvc repro --pull`", str(refused.value))
    assert command in " ".join((ROOT / "README.md").read_text().split())
    clone.run("sh", "-c", command)
    assert (study.exists(), figure.exists()) == (True, False)
    shutil.rmtree(study.parent)
    assert unsaved(clone) == set()


@pytest.mark.usefixtures("clone")
def test_what_is_no_other_preset_is_refused():
    with pytest.raises(InputError, match=r"'huge' is not a preset; conf/preset has article, .* tiny\."):
        keep("huge", None, silent)
    with pytest.raises(InputError, match=r"quick is the study that reports/metrics\.md shows"):
        keep("quick", None, silent)


def test_a_preset_that_bears_anothers_name_is_refused(clone):
    """As one with `defaults: [tiny]` and no line of its own is: the folder and what is in it would have two names."""
    Path("conf/preset/mine.yaml").write_text(TINY)
    clone.run("git", "add", "conf/preset/mine.yaml")
    clone.run("git", "commit", "--quiet", "--message", "mine")
    with pytest.raises(
        InputError, match=r"conf/preset/mine\.yaml should have the line `preset: mine`; it leaves 'tiny'"
    ):
        keep("mine", None, silent)
    assert not (STUDIES / "mine").exists()
    clone.run("git", "reset", "--quiet", "--hard", "HEAD~1")


@pytest.mark.parametrize("text", ["train: [", "train:\n\tlr: 1", "train: {lr: 1}\ntrain: {lr: 2}"])
def test_a_preset_that_is_no_yaml_is_one_sentence(clone, text):
    Path("conf/preset/mine.yaml").write_text(text)
    clone.run("git", "add", "conf/preset/mine.yaml")
    clone.run("git", "commit", "--quiet", "--message", "mine")
    with pytest.raises(InputError, match=r"conf/preset/mine\.yaml cannot be composed: .+\.") as caught:
        keep("mine", None, silent)
    assert "\n" not in str(caught.value)
    clone.run("git", "reset", "--quiet", "--hard", "HEAD~1")


@pytest.mark.usefixtures("clone")
def test_two_at_once_are_refused():
    MADE.parent.mkdir(parents=True, exist_ok=True)
    with MADE.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is making the study tiny"):
            keep("tiny", None, silent)


def test_studies_whose_names_differ_behind_a_dot_do_not_wait_for_each_other(tmp_path):
    with _alone(tmp_path / "lr0.01"), _alone(tmp_path / "lr0.05"):
        assert {path.name for path in tmp_path.iterdir()} == {"lr0.01.lock", "lr0.05.lock"}


def test_without_a_remote_it_says_which_command_sets_one(clone):
    with clone.edited([".dvc/config"], ""):
        clone.dvc("remote", "remove", "store")
        clone.run("git", "commit", "--quiet", "--all", "--message", "no remote")
        with pytest.raises(InputError, match="`dvc remote default NAME` sets one"):
            keep("tiny", None, silent)
    clone.save()


@pytest.mark.usefixtures("clone")
def test_a_remote_that_cannot_be_used_is_one_sentence():
    local = Path(".dvc/config.local")
    local.write_text("[core]\n    remote = nowhere\n")
    try:
        with pytest.raises(InputError, match=r"DVC's default remote cannot be used: .*nowhere.*exist"):
            keep("tiny", None, silent)
    finally:
        local.unlink()


def test_a_clone_has_the_cache_and_the_remotes_of_its_origin(clone, tmp_path):
    """Also those that git does not have and that are written relative to the folder .dvc."""
    clone.run("git", "clone", "--quiet", ".", str(tmp_path / "other"))
    Path(".dvc/config.local").write_text("[cache]\n    dir = ../../large\n['remote \"mine\"']\n    url = ../../mine\n")
    remote.configure(tmp_path / "other")
    Path(".dvc/config.local").unlink()
    config = Config(tmp_path / "other/.dvc")
    above = clone.folder.resolve().parent
    assert (config["cache"]["dir"], config["remote"]["mine"]["url"]) == (str(above / "large"), str(above / "mine"))


def test_what_is_used_of_dvcs_inside_is_what_it_was():
    assert list(inspect.signature(cache._get_stage_hash).parameters) == ["stage"]
    assert next(iter(inspect.signature(cache._get_cache_hash).parameters)) == "cache"
    assert next(iter(inspect.signature(to_single_stage_lockfile).parameters)) == "stage"
    assert list(inspect.signature(generic.copy).parameters)[:4] == ["from_fs", "from_path", "to_fs", "to_path"]
    assert {"command", "hash_name"} <= set(inspect.signature(DataCloud.get_remote_odb).parameters)
    assert list(inspect.signature(cache.StageCache.save).parameters) == ["self", "stage"]
    assert list(inspect.signature(Config.load_one).parameters) == ["self", "level"]
    assert next(iter(inspect.signature(Config.edit).parameters)) == "self"


# ---- The page


def make_study(folder: Path, name: str, errors: dict[str, float], *overrides: str) -> None:
    """Leave what a kept study is read from, with these test errors."""
    study = study_of(*overrides)
    work = folder / f".{name}"
    make_results(work, study, errors)
    (folder / name).mkdir()
    (folder / name / "results.csv").write_text(tables.csv(read(work, study).cells))
    (folder / name / "params.yaml").write_text(yaml.safe_dump(study.model_dump()))
    shutil.rmtree(work)


def errors(network: str, *values: float) -> dict[str, float]:
    return {f"{network}-{seed}": value for seed, value in enumerate(values)}


SHORT = ("preset=degradation", "model.net=resnet")


@pytest.fixture
def page(tmp_path):
    """Make kept studies and give the page."""
    make_study(tmp_path, "base", errors("resnet-3", 10.0, 10.5, 11.0) | errors("resnet-9", 9, 9, 9), *SHORT)

    def rendered(name: str, values: dict[str, float], *overrides: str) -> str:
        make_study(tmp_path, name, values, *overrides)
        return index.render(tmp_path)

    return rendered


def rows(page: str) -> list[list[str]]:
    """Of the table of comparisons."""
    _, _, compared = page.partition("## One parameter changed")
    lines = [line for line in compared.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_differences_are_paired_by_seed(page):
    """0.1, 0.2 and 0.3 more: s = 0.1, t(0.975, 2)/sqrt(3) = 2.484, so 0.20 ± 0.25, whatever lies between the seeds."""
    text = page("channels", errors("resnet-3", 10.1, 10.7, 11.3), "preset=channels", "model.n=3")
    changed = "`normalize` channel instead of pixel_mean"
    assert rows(text) == [
        ["channels, beside base", changed, "ResNet-20", "3", "10.70", "10.50", "+0.20", "-0.05 to 0.45"]
    ]
    assert "[channels](channels/metrics.md)" in text
    assert "`normalize`, `iterations` and `milestones`" in text


def test_shortcuts_that_the_paper_does_not_report_stand_in_the_table(page):
    text = page("projections", {}, "preset=projections")
    assert "`iterations`, `milestones` and `shortcut`" in text
    assert rows(text)[0][1] == "`shortcut` B instead of A"


def test_seeds_that_one_study_lacks_are_left_out(page):
    text = page("split", errors("resnet-3", 10.5, 11.0), "preset=split", "model.n=[3,5]", "train.seeds=[0,1,7]")
    first, second = rows(text)
    assert first[1:5] == ["`validation` 5000 instead of 0", "ResNet-20", "2", "10.75"]
    assert first[6:] == ["+0.50", "–"]
    assert second[2] == "ResNet-32"


@pytest.mark.parametrize(
    "overrides",
    [
        ("preset=channels", "train.lr=0.05"),  # two parameters
        ("preset=channels", "train.seeds=[7]"),  # no cell in common
        ("preset=degradation", "model.net=resnet", "train.eval_every=500"),  # none
    ],
)
def test_what_differs_otherwise_is_not_compared(page, overrides):
    assert "One parameter" not in page("other", {}, *overrides, "model.n=3")


def test_one_parameter_of_which_neither_has_the_papers_value_is_not_compared(page, tmp_path):
    make_study(tmp_path, "slow", {}, *SHORT, "model.n=3", "train.lr=0.05", "train.momentum=0.8")
    text = page("slower", {}, *SHORT, "model.n=3", "train.lr=0.05", "train.momentum=0.7")
    assert "slower, beside slow" not in text


def test_without_the_papers_warm_up_is_one_parameter_of_the_deep_networks(page, tmp_path):
    """The paper's is 400 iterations of ResNet-110 and of no other."""
    deep = (*SHORT, "model.n=18", "train.warmup.iterations=400")
    make_study(tmp_path, "deep", errors("resnet-18", 12, 12, 12), *deep)
    (row,) = rows(page("cold", errors("resnet-18", 13, 14, 15), *SHORT, "model.n=18", "train.warmup.iterations=0"))
    assert row[:3] == ["cold, beside deep", "`warmup_iterations` 0 instead of 400", "ResNet-110"]


def test_a_warm_up_of_networks_that_have_none_in_the_paper_is_one_parameter(page):
    (row,) = rows(page("warm", errors("resnet-9", 9, 9, 9), *SHORT, "model.n=9", "train.warmup.min_n=9"))
    assert row[:3] == ["warm, beside base", "`warmup_iterations` 400 instead of 0", "ResNet-56"]


def test_a_learning_rate_is_one_parameter(page):
    (row,) = rows(page("slow", errors("resnet-3", 11, 11.5, 12), *SHORT, "model.n=3", "train.lr=0.05"))
    assert row[1] == "`lr` 0.05 instead of 0.1"


@pytest.mark.parametrize(
    ("of_56", "said"),
    [
        ((9.8, 9.9, 10), "+0.90 (95% interval 0.65 to 1.15), the same way.\n"),
        ((9.5, 10, 10.5), "+1.00 (95% interval -0.24 to 2.24), which shows no effect.\n"),  # though 0.91 is in it
    ],
)
def test_whether_initialisation_explains_the_article(page, of_56, said):
    """7.884 - 6.97 = 0.91 for ResNet-56, 8.586 - 8.75 = -0.16 for ResNet-20."""
    values = errors("resnet-3", 10.1, 10.6, 11.1) | errors("resnet-9", *of_56)
    found = page("article", values, "preset=article").partition("Whether initialisation")[2]
    ours = "points from the paper's. PyTorch's initialisation moves ours, after 8,000, by "
    assert (
        f"- ResNet-20: after 64,000 iterations the article's error is -0.16 {ours}"
        "+0.10 (95% interval 0.10 to 0.10), the other way.\n"
    ) in found
    assert f"- ResNet-56: after 64,000 iterations the article's error is +0.91 {ours}{said}" in found


def test_one_pair_of_runs_has_no_interval(page):
    text = page("article", errors("resnet-9", 9.5), "preset=article", "model.n=9", "train.seeds=0")
    assert "moves ours, after 8,000, by +0.50, in 1 pair of runs, too few for an interval." in text


def test_of_the_precision_the_one_in_force_counts(page, tmp_path):
    asked = page("bf16", errors("resnet-3", 10, 10.5, 11), "preset=bf16")
    assert "One parameter" not in asked  # made by a processor without it
    path = tmp_path / "bf16/results.csv"
    pd.read_csv(path).assign(precision="bf16", engine="eager").to_csv(path, index=False)
    (row,) = rows(index.render(tmp_path))
    assert row[1] == "`precision` bf16 instead of fp32; eager engine instead of native"


def test_a_folder_that_is_no_study_is_named(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/params.yaml").write_text("")
    with pytest.raises(InputError, match=r"own is not a kept study \(its results\.csv cannot be read\)"):
        index.render(tmp_path)


def test_a_study_of_older_columns_is_named(page, tmp_path):
    path = tmp_path / "base/results.csv"
    path.write_text(path.read_text().replace(",engine,", ",way,"))
    with pytest.raises(InputError, match=r"base is not a kept study \(its results\.csv cannot be read\)"):
        page("other", errors("resnet-3", 10.0), *SHORT, "train.lr=0.05")


# ---- The repository's own


def test_the_page_is_that_of_the_studies():
    folder = ROOT / STUDIES
    assert not folder.exists() or (folder / "README.md").read_text() == index.render(folder)


@pytest.mark.parametrize("lock", sorted((ROOT / STUDIES).glob(f"*/{LOCK}")), ids=lambda path: path.parent.name)
def test_a_kept_study_is_of_the_code_of_today(lock):
    """Else `dvc exp run --pull` would train it: `resnet-cifar study NAME` keeps it anew."""
    deps = {(dep["path"], dep["md5"]) for stage in stages(lock).values() for dep in stage["deps"]}
    code = {(path, md5) for path, md5 in deps if path.startswith(("src/", "stages/"))}
    assert code
    assert {(path, hashlib.md5((ROOT / path).read_bytes()).hexdigest()) for path, _ in code} == code
