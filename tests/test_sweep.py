"""The sweep: what it trains, restores, records and refuses, in a clone of its own."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from clone import Clone

from resnet_cifar.cells import Cell, run_files
from resnet_cifar.errors import InputError
from resnet_cifar.sweep import command, local
from resnet_cifar.sweep.tree import RUNS, Tree
from resnet_cifar.training import provenance

CELLS = [Cell("resnet", 1, 0), Cell("resnet", 1, 1)]
STUDY = ["model.n=1", "train.seeds=[0,1]"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Clone:
    """A clone whose data set is not even made."""
    clone = Clone(tmp_path_factory.mktemp("clone"))
    (clone.folder / "results").mkdir()  # without it `dvc repro --dry` stops at the report
    clone.compose(*STUDY)
    clone.save()
    return clone


@pytest.fixture
def clone(made, monkeypatch) -> Clone:
    """The same clone for all tests, entered; this process counts as its code."""
    monkeypatch.chdir(made.folder)
    monkeypatch.setattr(provenance, "PACKAGE", made.folder.resolve() / "src/resnet_cifar")
    for name in ("PATH", "PYTHONPATH"):
        monkeypatch.setenv(name, made.environment[name])
    return made


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """The lines of progress."""
    lines: list[str] = []
    monkeypatch.setattr(command, "say", lines.append)
    return lines


def contents(folder: Path = RUNS) -> dict[str, bytes]:
    """What decides the evaluation, by path."""
    names = ("weights.safetensors", "history.csv")
    return {f"{cell}/{name}": (folder / cell.name / name).read_bytes() for cell in CELLS for name in names}


def forget() -> None:
    """Undo the training: its files, and what the lock file says of it."""
    shutil.rmtree(RUNS)
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    lock["stages"] = {name: stage for name, stage in lock["stages"].items() if not name.startswith("train")}
    Path("dvc.lock").write_text(yaml.safe_dump(lock))


def start(clone: Clone, *overrides: str) -> subprocess.Popen[str]:
    """The console command, training for some seconds a cell."""
    clone.compose(*STUDY, "train.iterations=150", "train.eval_every=150", *overrides)
    environment = clone.environment | {"RESNET_CIFAR_SAVE_EVERY": "0.05"}
    command = ["resnet-cifar", "sweep"]
    return subprocess.Popen(command, cwd=clone.folder, env=environment, text=True, stderr=subprocess.PIPE)


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"the sweep ended without saying {words!r}")


def test_a_dry_run_lists_the_cells_and_changes_nothing(clone, capsys):
    command.dry_run()
    output = capsys.readouterr().out
    assert "2 cells would be trained: resnet-1-0, resnet-1-1\nin about" in output
    assert not Path("data/cifar10.safetensors").exists()
    assert clone.run("git", "status", "--porcelain").stdout == ""


def test_trains_and_records_what_plain_repro_would(clone, said):
    command.run()
    assert {"resnet-1-0: recorded, 1 of 2", "resnet-1-1: recorded, 2 of 2"} <= set(said)
    assert clone.would_run() == ["evaluate@resnet-1-0", "evaluate@resnet-1-1", "report"]
    swept = contents()
    clone.dvc("repro", "--force", "--single-item", "train@resnet-1-0", "train@resnet-1-1")
    assert contents() == swept


def test_restores_from_the_cache_the_run_cache_and_the_remote(clone, said, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "train", lambda cells, *_: pytest.fail(f"trains {cells}") if cells else [])
    swept = contents()
    command.run()
    assert said == ["every cell is up to date; `dvc repro` evaluates and reports"]

    forget()
    command.dry_run()
    assert "2 cells would be restored from DVC" in capsys.readouterr().out
    assert not RUNS.exists()
    (RUNS / "resnet-1-0").mkdir(parents=True)
    (RUNS / "resnet-1-0/weights.safetensors").write_text("not the weights")
    command.run()
    assert "2 cells restored from DVC: resnet-1-0, resnet-1-1" in said
    assert contents() == swept
    assert clone.dvc("status", "train").strip() == "Data and pipelines are up to date."

    clone.dvc("remote", "add", "--default", "--local", "store", str(tmp_path / "store"))
    clone.dvc("push", "train")
    shutil.rmtree("runs")
    shutil.rmtree(".dvc/cache")
    command.dry_run()
    assert "2 cells would be restored from DVC" in capsys.readouterr().out
    command.run()
    assert contents() == swept
    clone.dvc("remote", "remove", "--local", "store")


def test_records_cells_from_elsewhere_and_refuses_others(clone, said, tmp_path):
    shutil.copytree("runs", tmp_path / "elsewhere")
    with (tmp_path / "elsewhere/resnet-1-1/weights.safetensors").open("ab") as file:
        file.write(b"x")
    forget()
    shutil.rmtree(".dvc/cache/runs")
    with pytest.raises(InputError, match=r"1 of 2 cells in .* refused"):
        command.record_from(tmp_path / "elsewhere")
    assert any("resnet-1-1: refused, its weights.safetensors has the SHA-256" in line for line in said)
    assert "up to date" in clone.dvc("status", "train@resnet-1-0")
    assert "up to date" not in clone.dvc("status", "train@resnet-1-1")
    with pytest.raises(InputError, match="holds no cell"):
        command.record_from(tmp_path)


@pytest.mark.parametrize(
    ("keys", "value", "sentence"),
    [
        (["digests", "code"], "other", "its code digest is other, not "),
        (["digests", "parameters"], "other", "its parameter digest is other, not "),
        (["digests", "data"], "other", "its data digest is other, not "),
        (["eval_every"], 7, "its train.eval_every is 7, not 2 "),
        (["precision"], "fp16", "it was trained in fp16; params.yaml has "),
        (["cell"], "resnet-1-1", "its name is resnet-1-1, not resnet-1-0 "),
        (["digests"], None, "its run.json cannot be read"),
    ],
)
@pytest.mark.usefixtures("clone")
def test_names_the_difference(tmp_path, keys, value, sentence):
    shutil.copytree(RUNS / "resnet-1-0", tmp_path / "resnet-1-0")
    files = run_files(tmp_path, CELLS[0])
    tree = Tree.read()
    assert tree.mismatch(CELLS[0], files) is None
    record = json.loads(files.record.read_text())
    inner = record
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    files.record.write_text(json.dumps(record))
    assert tree.mismatch(CELLS[0], files).startswith(sentence)


@pytest.mark.parametrize("name", ["run.json", "weights.safetensors", "history.csv"])
@pytest.mark.usefixtures("clone")
def test_a_cell_is_its_three_files(tmp_path, name):
    shutil.copytree(RUNS / "resnet-1-0", tmp_path / "resnet-1-0")
    (tmp_path / "resnet-1-0" / name).unlink()
    assert Tree.read().mismatch(CELLS[0], run_files(tmp_path, CELLS[0])) == f"its {name} is missing"


@pytest.mark.parametrize("name", ["weights.safetensors", "history.csv"])
@pytest.mark.usefixtures("clone")
def test_a_byte_that_changed_on_the_way_is_noticed(tmp_path, name):
    shutil.copytree(RUNS / "resnet-1-0", tmp_path / "resnet-1-0")
    with (tmp_path / "resnet-1-0" / name).open("ab") as file:
        file.write(b"0")
    assert Tree.read().mismatch(CELLS[0], run_files(tmp_path, CELLS[0])).startswith(f"its {name} has the SHA-256 ")


def test_refuses_to_record_when_the_tree_has_changed(clone, monkeypatch):
    def say(line: str) -> None:
        if "recorded, 1 of 2" in line:
            clone.compose(*STUDY, "train.lr=0.07")

    monkeypatch.setattr(command, "say", say)
    clone.compose(*STUDY, "train.lr=0.05")
    with pytest.raises(InputError, match="the code, the parameters or the data changed"):
        command.run()
    clone.compose(*STUDY, "train.lr=0.05")
    (changed,) = [stage for stage in clone.would_run() if stage.startswith("train")]
    assert changed == "train@resnet-1-1"


@pytest.mark.usefixtures("said")
def test_a_cell_that_fails_is_reported_with_its_reason(clone):
    clone.compose(*STUDY, "train.lr=1e30")
    with pytest.raises(
        InputError, match=r"0 of 2 cells recorded; resnet-1-0: the loss is nan .*; resnet-1-1: the loss"
    ):
        command.run()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_the_middle_it_keeps_what_is_recorded_and_resumes_the_rest(clone, signum):
    rate = f"train.lr=0.0{int(signum)}"
    process = start(clone, rate)
    wait_for(process, "recorded, 1 of 2")
    kept = (clone.folder / "runs/resnet-1-0/run.json").stat().st_mtime_ns
    state = clone.folder / "scratch/resnet-1-1"
    while not list(state.glob("*.safetensors")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signum)
    rest = process.stderr.read()
    assert process.wait() == (-signal.SIGKILL if signum == signal.SIGKILL else 128 + signum)
    if signum == signal.SIGINT:
        assert "interrupted with 1 of 2 recorded" in rest
    again = start(clone, rate)
    _, lines = again.communicate()
    assert again.returncode == 0, lines
    assert "resnet-1-1: recorded, 1 of 1" in lines
    assert (clone.folder / "runs/resnet-1-0/run.json").stat().st_mtime_ns == kept
    assert json.loads((clone.folder / "runs/resnet-1-1/run.json").read_text())["resumed_at"]


def test_work_is_shared_evenly():
    cells = [Cell("resnet", n, seed) for n in (3, 9) for seed in (0, 1, 2, 3)]
    parts = local.share(cells, 4)
    assert [sum(cell.n for cell in part) for part in parts] == [12] * 4
    assert local.share(cells[:1], 4) == [cells[:1]]


def test_another_checkouts_command_is_refused(clone):
    environment = clone.environment | {"PYTHONPATH": ""}
    done = subprocess.run(["resnet-cifar", "sweep"], cwd=clone.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: resnet-cifar runs the code in ")
    assert done.stderr.count("\n") == 1
