"""The sweep: what it trains, restores, records and refuses, each test in a clone of its own."""

import dataclasses
import errno
import inspect
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import dvc
import pytest
import torch
import yaml
from clone import Clone, ran
from conftest import ROOT
from dvc.data_cloud import DataCloud
from dvc.dvcfile import Lockfile
from dvc.repo import Repo
from dvc.repo.stage import StageLoad
from dvc.stage import PipelineStage
from dvc.stage.cache import StageCache
from dvc.stage.loader import StageLoader

from resnet_cifar import settings
from resnet_cifar.cells import RUNS, Cell, run_files
from resnet_cifar.errors import InputError, Interrupted, TrainingError
from resnet_cifar.files import write_whole
from resnet_cifar.native import library
from resnet_cifar.native.build import Unavailable
from resnet_cifar.params import Study
from resnet_cifar.sweep import checkout, estimate, local, run
from resnet_cifar.sweep.checkout import Checkout
from resnet_cifar.sweep.ledger import Ledger
from resnet_cifar.training import record
from resnet_cifar.training.engines import native_arithmetic
from resnet_cifar.training.record import RecordError

CELLS = [Cell("resnet", 1, 0), Cell("resnet", 1, 1)]
STUDY = ["model.n=1", "train.seeds=[0,1]"]
COMMAND = [sys.executable, "-m", "resnet_cifar.commands.cli", "sweep"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Clone:
    """A clone whose data set is not even made."""
    clone = Clone(tmp_path_factory.mktemp("made"))
    (clone.folder / "results").mkdir()  # without it `dvc repro --dry` stops at the report
    clone.compose(*STUDY)
    clone.save()
    return clone


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory) -> Clone:
    """A clone after a sweep; ``lines`` are what it said."""
    clone = made.copy(tmp_path_factory.mktemp("trained") / "clone")
    clone.lines = []
    with pytest.MonkeyPatch.context() as patch:
        clone.enter(patch)
        train(clone.lines)
    clone.save()
    return clone


@pytest.fixture
def enter(tmp_path, monkeypatch) -> Callable[[Clone], Clone]:
    """Enter a copy of a clone; this process counts as its code."""

    def entered(clone: Clone) -> Clone:
        mine = clone.copy(tmp_path / "clone")
        mine.enter(monkeypatch)
        return mine

    return entered


@pytest.fixture
def clone(trained, enter) -> Clone:
    """A copy of the clone in which two cells are trained and recorded, entered."""
    return enter(trained)


@pytest.fixture
def said() -> list[str]:
    """The lines of progress, for what gets ``said.append``."""
    return []


@pytest.fixture
def no_training(monkeypatch) -> None:
    monkeypatch.setattr(local, "train", lambda cells, *_: pytest.fail(f"trains {cells}"))


def train(said: list[str]) -> None:
    run.train(settings.read(), said.append)


def changed() -> set[str]:
    """The train stages that are not up to date for DVC."""
    return {stage.partition(":")[2] or stage for stage in Repo().status(targets=["train"])}


def contents(folder: Path = RUNS) -> dict[str, bytes]:
    """What decides the evaluation, by path."""
    names = ("weights.safetensors", "history.csv")
    return {f"{cell}/{name}": (folder / cell.name / name).read_bytes() for cell in CELLS for name in names}


def forget(runs: bool = True, run_cache: bool = False) -> None:
    """Undo the training: what the lock file says of it, its files, and what the run-cache has."""
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    lock["stages"] = {name: stage for name, stage in lock["stages"].items() if not name.startswith("train")}
    Path("dvc.lock").write_text(yaml.safe_dump(lock))
    if runs:
        shutil.rmtree(RUNS)
    if run_cache:
        shutil.rmtree(".dvc/cache/runs")


def edit(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} in {path}"
        text = text.replace(old, new)
    path.write_text(text)


def edit_record(cell: Cell, folder: Path, *keys: str, value: object) -> None:
    """Change one value in a cell's run.json."""
    path = run_files(folder, cell).record
    record = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(record))


def make_native(cell: Cell, folder: Path = RUNS) -> None:
    """Have a cell's record say that the native engine trained it."""
    edit_record(cell, folder, "arithmetic", value=native_arithmetic().model_dump(exclude_defaults=True))


def test_a_dry_run_lists_the_cells_and_changes_nothing(made, enter, said, capsys):
    clone = enter(made)
    run.dry_run(settings.read(), said.append)
    output = capsys.readouterr().out
    assert "2 cells would be trained: resnet-1-0, resnet-1-1\nin about" in output
    assert not Path("data/cifar10.safetensors").exists()
    assert clone.run("git", "status", "--porcelain").stdout == ""


def test_a_dry_run_on_a_device_that_another_process_fills_is_one_sentence(made, enter, said, monkeypatch):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    enter(made)
    monkeypatch.setattr(run, "estimate", full)
    with pytest.raises(InputError, match=r"^cpu has not enough memory or fails \(CUDA out of memory"):
        run.dry_run(settings.read(), said.append)


def test_trains_and_records_what_plain_repro_would(clone):
    assert {"resnet-1-0: recorded, 1 of 2", "resnet-1-1: recorded, 2 of 2"} <= set(clone.lines)
    assert clone.would_run() == ["evaluate@resnet-1-0", "evaluate@resnet-1-1", "report"]
    swept = contents()
    clone.dvc("repro", "--force", "--single-item", "train@resnet-1-1")
    assert contents() == swept


@pytest.mark.usefixtures("clone", "no_training")
def test_what_is_up_to_date_stays(said):
    train(said)
    assert said == ["every cell is up to date; `dvc repro` evaluates and reports"]


@pytest.mark.usefixtures("clone", "no_training")
def test_restores_from_the_run_cache(said, capsys):
    swept = contents()
    forget()
    run.dry_run(settings.read(), said.append)
    assert "2 cells would be restored from DVC" in capsys.readouterr().out
    assert not RUNS.exists()
    (RUNS / "resnet-1-0").mkdir(parents=True)
    (RUNS / "resnet-1-0/weights.safetensors").write_text("not the weights")
    train(said)
    assert "2 cells restored from DVC: resnet-1-0, resnet-1-1" in said
    assert contents() == swept
    assert changed() == set()


@pytest.mark.usefixtures("clone", "no_training")
@pytest.mark.parametrize("locked", [True, False], ids=["named by the lock file", "named by the run-cache"])
def test_restores_from_the_remote(said, capsys, tmp_path, locked):
    swept = contents()
    Path(".dvc/config.local").write_text(
        f"[core]\n    remote = store\n['remote \"store\"']\n    url = {tmp_path}/store\n"
    )
    Repo().push(["train"], run_cache=True)
    if locked:
        shutil.rmtree(RUNS)
    else:
        forget()
    shutil.rmtree(".dvc/cache")
    run.dry_run(settings.read(), said.append)
    assert "2 cells would be restored from DVC" in capsys.readouterr().out
    train(said)
    assert contents() == swept
    assert changed() == set()


@pytest.mark.usefixtures("clone")
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("[core]\n    remote = nowhere\n", "default remote cannot be used: .*'nowhere' doesn't exist"),
        (
            "[core]\n    remote = a\n['remote \"a\"']\n    url = foo://b\n",
            "DVC could not go on: .*Unsupported URL type foo://",
        ),
    ],
)
def test_a_remote_that_cannot_be_used_is_one_sentence(said, config, reason):
    forget()
    Path(".dvc/config.local").write_text(config)
    for command in (train, lambda said: run.dry_run(settings.read(), said.append)):
        with pytest.raises(InputError, match=reason):
            command(said)
    assert not RUNS.exists()


@pytest.mark.usefixtures("clone")
def test_a_remote_whose_plugin_is_missing_is_one_sentence(said, monkeypatch):
    def missing(*_: object, **__: object) -> None:
        raise ImportError("s3 is supported, but requires 'dvc-s3' to be installed")

    monkeypatch.setattr(DataCloud, "get_remote", missing)
    with pytest.raises(InputError, match=r"default remote cannot be used: s3 is .* requires 'dvc-s3' to be installed"):
        train(said)


@pytest.mark.usefixtures("clone")
def test_a_signal_while_dvc_writes_the_lock_file_leaves_it_as_it_was(monkeypatch):
    forget(runs=False)
    before = Path("dvc.lock").read_bytes()

    def interrupted(lock: Lockfile, *_: object, **__: object) -> None:
        with Path(lock.path).open("r+b") as file:
            file.truncate(len(before) // 2)
        raise KeyboardInterrupt

    ledger = Ledger()
    with monkeypatch.context() as patch:
        patch.setattr(Lockfile, "dump_stages", interrupted)
        for write in (ledger.record, ledger.restore):
            with pytest.raises(KeyboardInterrupt):
                write(CELLS)
            assert Path("dvc.lock").read_bytes() == before
    assert not list(Path().glob(".dvc.lock*"))
    assert ledger.restore(CELLS) == CELLS
    assert changed() == set()


def test_an_experiment_takes_what_a_sweep_recorded(clone):
    swept = contents()
    forget()
    output = clone.dvc("exp", "run", "train", *(word for text in STUDY for word in ("-S", text)))
    assert ran(output) == []
    assert output.count("is cached - skipping run, checking out outputs") == len(CELLS)
    assert contents() == swept


@pytest.mark.usefixtures("clone", "no_training")
def test_takes_cells_from_elsewhere_and_refuses_others(said, tmp_path):
    shutil.copytree("runs", tmp_path / "elsewhere")
    edit_record(CELLS[1], tmp_path / "elsewhere", "weights_sha256", value=64 * "0")
    shutil.copytree(RUNS / "resnet-1-0", tmp_path / "elsewhere/resnet-9-4")
    forget(run_cache=True)
    with pytest.raises(InputError, match=r"1 of 2 cells in .* could not be recorded"):
        run.record_from(tmp_path / "elsewhere", said.append)
    assert f"params.yaml does not name resnet-9-4: left in {tmp_path / 'elsewhere'}" in said
    assert any("resnet-1-1: refused, its weights.safetensors has the digest" in line for line in said)
    assert changed() == {"train@resnet-1-1"}
    with pytest.raises(InputError, match="holds no cell"):
        run.record_from(tmp_path, said.append)


@pytest.mark.usefixtures("clone")
def test_a_cell_from_elsewhere_brings_no_other_engine_into_the_table(said, tmp_path):
    """The one it would stand beside is not even checked out."""
    shutil.copytree(RUNS / "resnet-1-1", tmp_path / "elsewhere/resnet-1-1")
    make_native(CELLS[1], tmp_path / "elsewhere")
    shutil.rmtree(RUNS)
    with pytest.raises(InputError, match="could not be recorded"):
        run.record_from(tmp_path / "elsewhere", said.append)
    assert (
        "resnet-1-1: refused, its engine is 'native', resnet-1-0's is 'eager', and a table must not mix engines"
    ) in said


@pytest.mark.usefixtures("clone")
def test_all_cells_can_be_replaced_by_another_engines(said, tmp_path):
    shutil.copytree(RUNS, tmp_path / "elsewhere")
    for cell in CELLS:
        make_native(cell, tmp_path / "elsewhere")
    run.record_from(tmp_path / "elsewhere", said.append)
    assert "resnet-1-1: recorded, 2 of 2" in said


@pytest.mark.usefixtures("clone")
def test_torchs_bytes_must_come_from_this_code_and_the_native_engines_from_its_version():
    files, tree = run_files(RUNS, CELLS[0]), Checkout.read()
    assert tree.engine(CELLS[0]) == "eager"
    edit_record(CELLS[0], RUNS, "arithmetic", "threads", value=3)
    tree.read_run(CELLS[0], files)
    edit_record(CELLS[0], RUNS, "arithmetic", "code", value=64 * "0")
    with pytest.raises(RecordError, match=r"^its code's digest is 000000000000, not "):
        tree.read_run(CELLS[0], files)
    make_native(CELLS[0])
    tree.read_run(CELLS[0], files)
    edit_record(CELLS[0], RUNS, "arithmetic", "bits", value=0)
    with pytest.raises(RecordError, match=r"^its version of the native engine's bits is 0, not "):
        tree.read_run(CELLS[0], files)
    edit_record(CELLS[0], RUNS, "question", "data", value=64 * "0")
    with pytest.raises(RecordError, match=r"^its data set's digest is 000000000000, not "):
        tree.read_run(CELLS[0], files)


def test_a_new_parameter_at_its_default_trains_nothing_again(clone):
    for cell in CELLS:
        make_native(cell)
    Repo().commit("train", force=True)
    swept = contents()
    edit(clone.folder / "conf/config.yaml", ("  momentum: 0.9 ", "  nesterov: false\n  momentum: 0.9 "))
    edit(clone.folder / "dvc.yaml", ("      - train.momentum\n", "      - train.momentum\n      - train.nesterov\n"))
    edit(
        clone.folder / "src/resnet_cifar/params.py",
        ("    momentum: Unit =", '    nesterov: bool = Field(default=False, description="")\n    momentum: Unit ='),
    )
    edit(
        clone.folder / "src/resnet_cifar/numerics/protocol.py",
        ("    eval_every: int\n", "    eval_every: int\n    nesterov: bool = False\n"),
        ("        momentum=train.momentum,\n", "        momentum=train.momentum,\n        nesterov=train.nesterov,\n"),
    )
    clone.compose(*STUDY)
    assert "nesterov: false" in Path("params.yaml").read_text()
    assert changed() == {"train@resnet-1-0", "train@resnet-1-1"}
    lines = clone.run(*COMMAND).stderr
    assert "resnet-1-1: recorded, 2 of 2" in lines
    assert " to train" not in lines
    assert contents() == swept
    assert changed() == set()


@pytest.mark.usefixtures("clone")
def test_an_edit_of_anything_that_a_cell_depends_on_is_noticed():
    dependencies = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]["train"]["deps"]
    for name in ("dvc.yaml", "params.yaml", *dependencies):
        tree = Checkout.read()
        tree.check_unchanged()
        with Path(name).open("ab") as file:
            file.write(b"\n")
        with pytest.raises(InputError, match="changed while cells were training"):
            tree.check_unchanged()


def test_refuses_to_record_when_the_checkout_has_changed(clone, tmp_path):
    shutil.copytree("runs", tmp_path / "elsewhere")
    forget(run_cache=True)

    def say(line: str) -> None:
        if "recorded, 1 of 2" in line:
            with Path("stages/train.py").open("a") as file:
                file.write("# a change\n")

    with pytest.raises(InputError, match="the code, the parameters or the data changed"):
        run.record_from(tmp_path / "elsewhere", say)
    clone.run("git", "checkout", "stages/train.py")
    assert changed() == {"train@resnet-1-1"}


@pytest.mark.usefixtures("clone", "no_training")
def test_a_cell_that_cannot_be_recorded_stops_no_other_and_is_recorded_by_the_next_sweep(said, monkeypatch):
    forget(runs=False)
    save = PipelineStage.save

    def full_for_one(stage: PipelineStage) -> None:
        if stage.name == "train@resnet-1-0":
            raise OSError(errno.ENOSPC, "No space left on device")
        save(stage)

    with monkeypatch.context() as patch:
        patch.setattr(PipelineStage, "save", full_for_one)
        with pytest.raises(
            TrainingError,
            match=r"^1 of 2 cells recorded; resnet-1-0: trained but not recorded \(No space left on device\); it stays",
        ):
            train(said)
    assert changed() == {"train@resnet-1-0"}
    train(said)
    assert "resnet-1-0: recorded, 1 of 1" in said
    assert changed() == set()


@pytest.mark.usefixtures("clone")
def test_where_dvc_takes_long_cells_are_recorded_together(said, tmp_path, monkeypatch):
    shutil.copytree("runs", tmp_path / "elsewhere")
    forget(run_cache=True)
    calls = []
    record = Ledger.record

    def noted(ledger: Ledger, cells: list[Cell]) -> dict[Cell, Exception]:
        calls.append(list(cells))
        return record(ledger, cells)

    monkeypatch.setattr(Ledger, "record", noted)
    sweep = run.Sweep(said.append)
    sweep.due = math.inf  # the last recording took so long
    for cell in CELLS:
        assert sweep.take(cell, run_files(tmp_path / "elsewhere", cell)) is None
    assert calls == []
    assert sweep.end() == []
    assert calls == [CELLS]
    assert changed() == set()


@pytest.mark.usefixtures("clone", "no_training")
def test_a_full_disk_stops_no_other_cell_from_elsewhere(said, tmp_path, monkeypatch):
    shutil.copytree("runs", tmp_path / "elsewhere")
    forget(run_cache=True)

    def full_for_one(path: Path, content: bytes) -> None:
        if CELLS[0].name in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_whole(path, content)

    monkeypatch.setattr(record, "write_whole", full_for_one)
    with pytest.raises(InputError, match="1 of 2 cells"):
        run.record_from(tmp_path / "elsewhere", said.append)
    assert any(line.startswith("resnet-1-0: trained but not kept (") for line in said)
    assert changed() == {"train@resnet-1-0"}


@pytest.mark.usefixtures("clone", "no_training")
def test_a_link_that_dvc_would_refuse_is_refused_before_any_training(said, tmp_path):
    RUNS.rename(tmp_path / "disk")
    RUNS.symlink_to(tmp_path / "disk")
    for sweep in (lambda: train(said), lambda: run.record_from(tmp_path / "disk", said.append)):
        with pytest.raises(InputError, match=r"/runs is a symbolic link .*`dvc cache dir"):
            sweep()


def test_a_cell_that_fails_is_reported_with_its_reason(clone, said):
    clone.compose(*STUDY, "train.lr=1e30")
    with pytest.raises(
        TrainingError, match=r"0 of 2 cells recorded; resnet-1-0: the loss is not finite .*; resnet-1-1: the loss"
    ):
        train(said)


def test_the_native_engine_is_not_left_without_a_word(clone, said, monkeypatch):
    def missing(*_: object) -> None:
        raise Unavailable("there is no C++ compiler")

    for cell in CELLS:
        make_native(cell)
    monkeypatch.setattr(library, "load", missing)
    monkeypatch.setattr(local, "train", lambda *_: [])
    clone.compose("model.n=1", "train.seeds=[0,1,2]")
    train(said)
    assert (
        "resnet-1-0 was trained by the engine 'native', and 'eager' would train the others: the table will mix them"
    ) in said
    monkeypatch.delenv("RESNET_CIFAR_SIMD")
    with pytest.raises(InputError, match="the native one cannot be used here; a table must not mix engines"):
        train(said)


@pytest.mark.usefixtures("clone", "no_training")
def test_a_finished_cell_of_another_engine_is_not_recorded_without_a_word(said):
    """As when a cell was trained by hand and nothing is left to train."""
    make_native(CELLS[0])
    train(said)
    assert (
        "resnet-1-0 is recorded all the same: its engine is 'native', resnet-1-1's is 'eager', and a table must not "
        "mix engines"
    ) in said
    assert "resnet-1-0: recorded, 1 of 1" in said


def test_killed_or_interrupted_it_keeps_what_is_recorded_and_resumes_the_rest(clone, said, monkeypatch):
    clone.compose(*STUDY, "train.iterations=90", "train.eval_every=90")
    monkeypatch.setenv("RESNET_CIFAR_SAVE_EVERY", "0.2")
    process = subprocess.Popen(COMMAND, env=clone.environment, text=True, stderr=subprocess.PIPE)
    assert any("recorded, 1 of 2" in line for line in process.stderr)
    while not list(Path("scratch/resnet-1-1").glob("*.safetensors")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    process.stderr.close()
    kept = run_files(RUNS, CELLS[0]).record.stat().st_mtime_ns

    def say(line: str) -> None:
        said.append(line)
        if "resnet-1-1: goes on from iteration " in line:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(local, "LOOK_EVERY", 0.01)
    with pytest.raises(Interrupted) as ended:
        run.train(settings.read(), say)
    assert ended.value.signum == signal.SIGINT
    assert said[-1] == "interrupted with 0 of 1 recorded; the same command goes on from there"

    train(said)
    assert "resnet-1-1: recorded, 1 of 1" in said
    assert run_files(RUNS, CELLS[0]).record.stat().st_mtime_ns == kept
    assert json.loads(run_files(RUNS, CELLS[1]).record.read_text())["resumed_at"]


def test_work_is_shared_evenly():
    cells = [Cell("resnet", n, seed) for n in (3, 9) for seed in (0, 1, 2, 3)]
    parts = local.share(cells, 4)
    assert [sum(cell.n for cell in part) for part in parts] == [12] * 4
    assert local.share(cells[:1], 4) == [cells[:1]]


@pytest.mark.usefixtures("clone")
def test_another_checkouts_command_is_refused(said, monkeypatch, tmp_path):
    monkeypatch.setattr(checkout, "PACKAGE", tmp_path)
    with pytest.raises(InputError, match=r"^resnet-cifar runs the code in "):
        train(said)


def test_without_ray_or_dvc_the_command_says_so(said, monkeypatch, tmp_path):
    import resnet_cifar.sweep

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "resnet_cifar.sweep.cluster", raising=False)
    monkeypatch.delattr(resnet_cifar.sweep, "cluster", raising=False)
    with pytest.raises(InputError, match=r"^ray is not installed: .*pip install '\.\[ray\]'"):
        run.train(settings.read(), said.append, on_ray=True)
    code = "import sys; sys.modules['dvc'] = None; sys.argv[1:] = ['sweep', '--dry']\n"
    code += "from resnet_cifar.commands.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: dvc is not installed: in a clone, `pip install '.[pipeline]'` brings it.\n"


def test_what_the_ledger_uses_of_dvcs_inside_is_what_it_was():
    """With another version: read ``sweep/ledger.py`` against it, then change this test and the pin in pyproject."""

    def parameters(function: Callable) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert dvc.__version__.startswith("3.67.")
    assert parameters(Lockfile.__init__)[:3] == ["self", "repo", "path"]
    assert parameters(Lockfile.dump_stages)[:2] == ["self", "stages"]
    assert parameters(StageCache._load) == ["self", "stage"]
    assert parameters(StageCache.pull) == ["self", "remote", "odb"]
    assert parameters(StageLoader.fill_from_lock) == ["stage", "lock_data"]
    assert parameters(StageLoad.collect)[:4] == ["self", "target", "with_deps", "recursive"]
    assert parameters(PipelineStage.changed) == ["self", "allow_missing", "upstream"]
    assert parameters(PipelineStage.changed_deps) == ["self", "allow_missing", "upstream"]
    assert parameters(PipelineStage.changed_stage) == ["self"]
    assert parameters(PipelineStage.save_deps) == ["self", "allow_missing"]
    assert parameters(PipelineStage.outs_cached) == ["self"]
    assert parameters(PipelineStage.remove_outs)[:3] == ["self", "ignore_remove", "force"]


# ---- Several devices


@pytest.mark.parametrize(
    ("gpus", "given", "expected"),
    [(0, None, ["cpu"]), (3, None, ["cuda:0", "cuda:1", "cuda:2"]), (3, "cuda:1", ["cuda:1"]), (3, "cpu", ["cpu"])],
)
def test_the_devices_that_train(monkeypatch, gpus, given, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert local.devices(dataclasses.replace(settings.read(), device=given)) == expected


def test_each_device_has_a_process_and_its_share_of_the_cells(tmp_path, monkeypatch):
    """A stand-in for the stage notes its device as what it trained."""
    monkeypatch.chdir(tmp_path)
    Path("stages").mkdir()
    Path("stages/train.py").write_text(
        "import os, sys\nfrom pathlib import Path\n"
        "for cell in sys.argv[sys.argv.index('--cells') + 1 :]:\n"
        "    Path('runs', cell).mkdir(parents=True)\n"
        "    Path('runs', cell, 'run.json').write_text(os.environ['RESNET_CIFAR_DEVICE'])\n"
        "    print('done')\n"
    )
    recorded, said = [], []
    with Path("lock").open("w") as lock:
        left = local.train(CELLS, ["cuda:0", "cuda:1"], lambda _: True, recorded.append, said.append, lock.fileno())
    assert (left, sorted(recorded), sorted(said)) == ([], CELLS, ["cuda:0 done", "cuda:1 done"])
    assert {run_files(RUNS, cell).record.read_text() for cell in CELLS} == {"cuda:0", "cuda:1"}


def test_an_estimate_by_hand(monkeypatch, tiny_study):
    """Six iterations and two evaluations of 10,000 images, so 20 of a thousand. Of ResNet-8 three cells, two at once:
    3/2 of 6 x 0.5 + 20 x 2 s; of ResNet-14 one: 6 x 1 + 20 x 2 s; in all 110.5 s. On nine devices each trains one cell
    alone: three times 43 s and 46 s, side by side."""
    monkeypatch.setattr(estimate, "_measure", lambda _, recipes, __: (0.5 * recipes[0].n, 2.0))
    monkeypatch.setattr(estimate.memory, "fit_at_once", lambda *_: 2)
    computer = SimpleNamespace(device=torch.device("cpu"))
    cells = [Cell("resnet", 1, 0), Cell("resnet", 1, 1), Cell("resnet", 1, 2), Cell("resnet", 2, 0)]
    for devices, seconds in ((1, 110.5), (2, 55.25), (9, 175 / 4)):
        assert estimate.estimate(computer, tiny_study, cells, 6, None, devices) == pytest.approx(seconds)


def with_networks(study: Study, **model: object) -> Study:
    """The same study of other networks, with seeds 0 and 1."""
    values = study.model_dump()
    values["model"] |= model
    values["train"]["seeds"] = [0, 1]
    values["cells"] = {"net": values["model"]["net"], "n": values["model"]["n"], "seed": [0, 1]}
    return Study.model_validate(values)


def check_engines(study: Study, trained: dict[str, str], stale: str, engine: str, wanted: bool) -> list[str]:
    """What a sweep says of the engines that would train one stale cell with ``engine``."""
    made = {Cell.parse(name): engine for name, engine in trained.items()}
    checkout = SimpleNamespace(study=study, engines=lambda cells: {cell: made[cell] for cell in cells if cell in made})
    lines: list[str] = []
    sweep = SimpleNamespace(checkout=checkout, say=lines.append)
    run.Sweep.check_engines(sweep, [Cell.parse(stale)], lambda _: engine, wanted)
    return lines


def test_a_native_cell_is_not_overlooked_behind_another_mixture(tiny_study):
    study = with_networks(tiny_study, net=["resnet"], n=[1, 2])
    trained = {"resnet-1-0": "cuda graph", "resnet-2-0": "native"}
    with pytest.raises(InputError, match=r"^resnet-2-0 was trained by the engine 'native'"):
        check_engines(study, trained, "resnet-1-1", "eager", wanted=False)
    (line,) = check_engines(study, trained, "resnet-1-1", "native", wanted=True)
    assert line.startswith("resnet-1-0 was trained by the engine 'cuda graph'")


@pytest.mark.parametrize(("stale", "refused"), [("resnet-1-0", False), ("plain-1-1", True)])
def test_what_needs_pytorch_anyway_is_trained_without_the_native_engine(tiny_study, stale, refused):
    study = with_networks(tiny_study, net=["plain", "resnet"], n=[1], shortcut="B")
    with pytest.raises(InputError, match="must not mix engines") if refused else nullcontext():
        assert check_engines(study, {"plain-1-0": "native"}, stale, "eager", wanted=False) == []


@pytest.mark.parametrize(("shortcut", "mixed"), [("A", True), ("B", False)])
def test_networks_that_need_another_engine_are_no_mixture(tiny_study, shortcut, mixed):
    """The native engine has no projections: of a study with shortcut B it trains the plain networks alone."""
    study = with_networks(tiny_study, shortcut=shortcut)
    refused = pytest.raises(RecordError, match="a table must not mix engines") if mixed else nullcontext()
    with refused:
        run._check_mixture(Cell("plain", 1, 0), "native", {Cell("resnet", 1, 0): "eager"}, study)
