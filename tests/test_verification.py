"""Verification: the published bytes made again, and what it says where they are not."""

import csv
import dataclasses
import errno
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from conftest import changed, make_session, needs_native

from resnet_cifar import settings, verification
from resnet_cifar.cells import Cell, run_files
from resnet_cifar.commands import cli
from resnet_cifar.errors import InputError, Interrupted
from resnet_cifar.files import sha256
from resnet_cifar.native import build, library, sets
from resnet_cifar.native.engine import NativeEngine
from resnet_cifar.native.library import Unavailable
from resnet_cifar.native.network import NativeNetwork
from resnet_cifar.numerics.engine import NonFiniteError
from resnet_cifar.params import Study
from resnet_cifar.sweep import estimate
from resnet_cifar.training import record
from resnet_cifar.training.cell_run import CellRun
from resnet_cifar.training.train import train_cells
from resnet_cifar.verification import Finding, Verdict, last_evaluation

CELL, PLAIN = CELLS = [Cell("resnet", 1, 0), Cell("plain", 1, 0)]
SETS = [each.name for each in sets.runnable(sets.FAST)]
LENGTH = (
    "resnet-1-0: to iteration 2 in about {} on this CPU, if from the beginning; "
    "interrupted, the same command goes on where it was"
)

pytestmark = needs_native


@pytest.fixture(scope="module")
def study(tiny_study) -> Study:
    """Six iterations, evaluated after every second."""
    return changed(tiny_study, eval_every=2)


@pytest.fixture(scope="module")
def published(study, tiny_data, tmp_path_factory) -> Path:
    """The runs of two cells, by the fastest set and two threads."""
    session = make_session(study, tiny_data, tmp_path_factory.mktemp("published"), simd=SETS[0], threads=2)
    assert train_cells(session, CELLS, lambda _: None) == {}
    return session.runs


@pytest.fixture
def runs(published, tmp_path) -> Path:
    """A copy of them."""
    return shutil.copytree(published, tmp_path / "runs")


@pytest.fixture(autouse=True)
def _quick_estimate(monkeypatch) -> None:
    monkeypatch.setattr(verification, "estimate", lambda *_: 60.0)


@pytest.fixture
def verify(study, tiny_data, runs, tmp_path) -> Callable[..., list[Finding]]:
    """Verify cells, by default one up to its first evaluation; ``verify.said`` are the lines."""

    def run(*cells: Cell, last: int = 2, of: Study = study, **changes: object) -> list[Finding]:
        run.said.clear()
        chosen = dataclasses.replace(settings.read(), **{"simd": SETS[-1]} | changes)
        said = run.said.append
        return list(verification.verify(of, cells or [CELL], last, tiny_data, runs, tmp_path / "scratch", chosen, said))

    run.said = []
    return run


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def states(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "scratch").rglob("*.safetensors"))


# ---- The same bytes


@pytest.mark.parametrize(("last", "points"), [(2, "the evaluation at"), (6, "each of 3 evaluations up to")])
@pytest.mark.parametrize("name", SETS)
def test_the_same_bytes_with_every_set_and_nothing_else_is_changed(verify, runs, tmp_path, name, last, points):
    before = contents(runs)
    (outcome,) = verify(last=last, simd=name, threads=1)
    assert (outcome.verdict, outcome.iteration) == (Verdict.SAME, last)
    assert f"resnet-1-0: same bytes at {points} iteration {last}; trained on " in outcome.sentence
    assert f" with {SETS[0]}, here on " in outcome.sentence
    assert outcome.sentence.endswith(f" with {name}.")
    assert contents(runs) == before
    assert states(tmp_path) == []


def begun_elsewhere(runs: Path, until: int) -> record.Record:
    """Another CPU began the run, says its record now."""
    files = run_files(runs, CELL)
    made = record.Record.model_validate_json(files.record.read_bytes())
    earlier = record.Earlier(until=until, circumstances=made.circumstances.model_copy(update={"device": "CPU"}))
    files.record.write_bytes(made.model_copy(update={"earlier": [earlier]}).content())
    return made


def test_of_a_run_of_several_machines_it_names_those_that_had_come_so_far(verify, runs):
    made = begun_elsewhere(runs, 4)
    (outcome,) = verify(last=4)
    assert f"; trained on CPU with {SETS[0]}, here on " in outcome.sentence
    (outcome,) = verify(last=6)
    then = f"{made.circumstances.device} with {SETS[0]}"
    assert f"; trained on CPU with {SETS[0]}, then {then}, here on " in outcome.sentence


def test_a_network_without_memory_for_it_is_not_compared(verify, monkeypatch):
    def refuse(*_: object) -> None:
        raise InputError("There is not enough memory for a network of 8 layers.")

    monkeypatch.setattr(verification, "estimate", estimate.estimate)
    monkeypatch.setattr(NativeNetwork, "__init__", refuse)
    (outcome,) = verify()
    assert outcome.verdict is Verdict.NOT_COMPARED
    sentence = "resnet-1-0 cannot be compared now: There is not enough memory for a network of 8 layers."
    assert outcome.sentence == sentence


def test_a_disk_that_is_full_is_no_difference(verify, monkeypatch):
    turn = CellRun.turn

    def full(self: CellRun) -> object:
        if self.cell == CELL:
            raise OSError(errno.ENOSPC, "No space left on device", "scratch/state")
        return turn(self)

    monkeypatch.setattr(CellRun, "turn", full)
    outcome, other = verify(CELL, PLAIN)
    assert outcome.verdict is Verdict.NOT_COMPARED
    assert outcome.sentence == "resnet-1-0 cannot be compared now: scratch/state: No space left on device."
    assert other.verdict is Verdict.SAME


def test_it_says_first_how_long_it_takes(verify):
    verify()
    assert verify.said == [LENGTH.format("1 min 00 s")]


@contextmanager
def stopped(cell: Cell, iteration: int) -> Iterator[None]:
    """SIGTERM comes when a cell has so many iterations."""
    turn = CellRun.turn

    def stop(self: CellRun) -> object:
        if (self.cell, self.run.iteration) == (cell, iteration):
            os.kill(os.getpid(), signal.SIGTERM)
        return turn(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CellRun, "turn", stop)
        yield


def test_interrupted_it_goes_on(verify, tmp_path, capsys):
    with stopped(CELL, 4), pytest.raises(Interrupted):
        verify(last=6)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "stopped" in line]
    assert line == "resnet-1-0: stopped at iteration 4; the same command goes on from there"
    assert len(states(tmp_path)) == 1
    (outcome,) = verify(last=6)
    assert outcome.verdict is Verdict.SAME
    assert "resnet-1-0: goes on from iteration 4" in capsys.readouterr().err
    assert states(tmp_path) == []


def test_a_state_of_an_engine_of_other_sources_is_not_gone_on_from(verify, monkeypatch, capsys):
    """What the sound one computed would hide what the other one does not; the object's name has its sources' digest."""
    with stopped(CELL, 4), pytest.raises(Interrupted):
        verify(last=6)
    load = verification.load_native
    monkeypatch.setattr(
        verification, "load_native", lambda *given: dataclasses.replace(load(*given), path=Path("avx512-other.so"))
    )
    capsys.readouterr()
    (outcome,) = verify(last=6)
    assert outcome.verdict is Verdict.SAME
    assert "goes on from" not in capsys.readouterr().err


def test_a_gpu_that_the_environment_names_is_not_used(verify):
    (outcome,) = verify(device="cuda")
    assert outcome.verdict is Verdict.SAME


def test_a_shorter_verification_leaves_the_state_of_a_longer_one(verify, tmp_path, capsys):
    with stopped(CELL, 4), pytest.raises(Interrupted):
        verify(last=6)
    (state,) = states(tmp_path)
    before = state.read_bytes()
    (outcome,) = verify(last=2)
    assert outcome.sentence.startswith("resnet-1-0: same bytes at the evaluation at iteration 2; ")
    assert state.read_bytes() == before
    verify(last=6)
    assert "goes on from iteration 4" in capsys.readouterr().err
    assert states(tmp_path) == []


@pytest.mark.parametrize(
    ("given", "last"), [(None, 1000), (1000, 1000), (2999, 2000), (64_000, 64_000), (10**9, 64_000)]
)
def test_the_last_evaluation_within_so_many_iterations(paper_study, given, last):
    assert last_evaluation(paper_study, given) == last


@pytest.mark.parametrize("given", [999, 0, -1])
def test_before_the_first_evaluation_nothing_can_be_compared(paper_study, given):
    with pytest.raises(
        InputError, match=r"first evaluation is at iteration 1,000: --iterations should be 1000 or more\."
    ):
        last_evaluation(paper_study, given)


def test_the_first_evaluation_of_a_short_run_is_its_end(study):
    assert last_evaluation(changed(study, eval_every=1000), None) == 6


# ---- Other bytes


def rewrite(runs: Path, change: Callable[[list[dict[str, str]]], None], as_recorded: bool) -> None:
    """Change the rows of a published history, and its digest in the record with it unless it stays ``as_recorded``."""
    files = run_files(runs, CELL)
    with files.history.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0])
    change(rows)
    with files.history.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if not as_recorded:
        found = record.Record.model_validate_json(files.record.read_bytes())
        files.record.write_bytes(found.model_copy(update={"history_sha256": sha256(files.history)}).content())


def test_it_says_between_which_evaluations_and_in_what_machines_the_first_difference_lies(verify, runs):
    def other_bytes(rows: list[dict[str, str]]) -> None:
        rows[1] |= {"weights_sha256": "0" * 64, "test_loss": "1.000000"}
        rows[2] |= {"weights_sha256": "1" * 64}

    rewrite(runs, other_bytes, as_recorded=False)
    assert verify()[0].verdict is Verdict.SAME
    (outcome,) = verify(last=6, threads=3)
    assert (outcome.verdict, outcome.iteration) == (Verdict.DIFFERENT, 2)
    assert (
        "resnet-1-0: different bytes; the first difference lies between iterations 2 and 4, where this machine has "
        "other values of test_loss, weights_sha256. The run's machine differs: "
    ) in outcome.sentence
    assert "its number of CPU threads is 2, not 3" in outcome.sentence
    assert "PyTorch" not in outcome.sentence


@pytest.mark.parametrize(
    ("until", "words"),
    [
        (4, "The run's machine was like this one."),
        (5, "The run's machine differs: its device is CPU, not {}, then was like this one."),
        (6, "The run's machine differs: its device is CPU, not {}."),
    ],
)
def test_of_a_run_of_several_machines_those_are_compared_that_computed_the_stretch(verify, runs, until, words):
    """The first difference lies between iterations 4 and 6."""
    rewrite(runs, lambda rows: rows[2].update(weights_sha256="0" * 64), as_recorded=False)
    made = begun_elsewhere(runs, until)
    (outcome,) = verify(last=6, simd=SETS[0], threads=2)
    assert (outcome.verdict, outcome.iteration) == (Verdict.DIFFERENT, 4)
    assert outcome.sentence.endswith(words.format(made.circumstances.device))


DAMAGES = {
    "none": ("", ""),
    "the order of a sum": (
        "fma(momentum, load(a.velocity + i), fma(decay, load(a.weights + i), load(a.gradient + i)))",
        "fma(decay, load(a.weights + i), fma(momentum, load(a.velocity + i), load(a.gradient + i)))",
    ),
}
"""What may happen to a line of sgd.h."""


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_engine_is_found(verify, tmp_path, monkeypatch, damage):
    here, there = DAMAGES[damage]
    sources = shutil.copytree(build.SOURCES, tmp_path / "cpp")
    content = (sources / "sgd.h").read_text()
    assert not here or content.count(here) == 1
    (sources / "sgd.h").write_text(content.replace(here, there) if here else content)
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setattr(build, "COMMON", [flag.replace("-O3", "-O0") for flag in build.COMMON])  # compiles in a second
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (outcome,) = verify(last=6)
    if damage == "none":
        assert outcome.verdict is Verdict.SAME
    else:
        assert (outcome.verdict, outcome.iteration) == (Verdict.DIFFERENT, 0)
        assert "the first difference lies between iterations 0 and 2" in outcome.sentence
        assert "weights_sha256" in outcome.sentence


def test_a_network_that_diverges_here_alone_is_a_difference(verify, monkeypatch):
    def diverge(*_: object):
        raise NonFiniteError(1)
        yield

    monkeypatch.setattr(NativeEngine, "steps", diverge)
    (outcome,) = verify()
    assert outcome.verdict is Verdict.DIFFERENT
    assert "where this machine has no finite value of the loss at iteration 2." in outcome.sentence


# ---- What cannot be compared


@pytest.mark.parametrize("what", ["history", "weights"])
def test_altered_files_are_another_sentence(verify, runs, what):
    if what == "history":
        rewrite(runs, lambda rows: rows[0].update(test_error="0.000000"), as_recorded=True)
    else:
        shutil.copyfile(run_files(runs, PLAIN).weights, run_files(runs, CELL).weights)
    (outcome,) = verify()
    assert (outcome.verdict, verify.said) == (Verdict.ALTERED, [])
    name = getattr(run_files(runs, CELL), what).name
    assert outcome.sentence.startswith(f"resnet-1-0 was altered after its training: its {name} has the digest ")


def test_the_files_of_another_cell_are_not_taken_for_this_ones(verify, runs):
    shutil.rmtree(runs / CELL.name)
    shutil.copytree(runs / PLAIN.name, runs / CELL.name)
    (outcome,) = verify()
    assert (outcome.cell, outcome.verdict, verify.said) == (CELL, Verdict.ALTERED, [])
    assert "resnet-1-0 was altered after its training: its run.json is that of plain-1-0; " in outcome.sentence


def test_a_curve_with_rows_that_are_missing_is_altered(verify, runs):
    rewrite(runs, lambda rows: rows.pop(0), as_recorded=False)
    (outcome,) = verify()
    assert outcome.verdict is Verdict.ALTERED
    assert "its history.csv is not the curve of a whole run" in outcome.sentence


def change_record(runs: Path, **arithmetic: object) -> None:
    path = run_files(runs, CELL).record
    found = record.Record.model_validate_json(path.read_bytes())
    other = found.arithmetic.model_copy(update=arithmetic)
    path.write_bytes(found.model_copy(update={"arithmetic": other}).content())


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (
            lambda runs: shutil.rmtree(runs / "resnet-1-0"),
            "has no finished run in .+: its run.json is missing; `dvc pull",
        ),
        (lambda runs: change_record(runs, engine="eager"), "cannot be compared: its engine is eager, not native; "),
        (lambda runs: change_record(runs, bits=7), "cannot be compared: its version of the native .+ bits is 7, not "),
    ],
)
def test_a_run_that_is_missing_or_another_engines_is_a_sentence(verify, runs, prepare, sentence):
    prepare(runs)
    outcome, other = verify(CELL, PLAIN)
    assert outcome.verdict is Verdict.NOT_COMPARED
    assert re.match(f"resnet-1-0 {sentence}", outcome.sentence)
    assert other.verdict is Verdict.SAME


def test_a_run_of_other_parameters_or_data_is_a_sentence(verify, study):
    (outcome,) = verify(of=changed(study, lr=0.05))
    assert outcome.verdict is Verdict.NOT_COMPARED
    assert outcome.sentence.startswith("resnet-1-0 cannot be compared: its parameters' digest is ")


def test_a_record_of_no_cell_is_altered(verify, runs):
    path = run_files(runs, CELL).record
    path.write_text(path.read_text().replace('"cell": "resnet-1-0"', '"cell": "nonsense"'))
    outcome, other = verify(CELL, PLAIN)
    assert outcome.verdict is Verdict.ALTERED
    assert "its run.json is that of nonsense" in outcome.sentence
    assert other.verdict is Verdict.SAME


def test_a_network_that_pytorch_would_train_here_is_not_compared(verify, study, tiny_data, tmp_path, monkeypatch):
    """In 16 bits, which this processor has and that of the run had not."""
    half = changed(study, precision="bf16")
    monkeypatch.setattr("resnet_cifar.machine.has_precision", lambda precision, _: precision == "fp32")
    assert train_cells(make_session(half, tiny_data, tmp_path, simd=SETS[0]), [CELL], lambda _: None) == {}
    monkeypatch.setattr("resnet_cifar.machine.has_precision", lambda *_: True)
    (outcome,) = verify(of=half)
    assert outcome.verdict is Verdict.NOT_COMPARED
    assert outcome.sentence == "resnet-1-0 cannot be compared: its engine is native, not eager as here."


def test_without_the_native_engine_nothing_is_trained(verify, monkeypatch):
    with pytest.raises(Unavailable, match="RESNET_CIFAR_SIMD is 'none'"):
        verify(simd="none")

    def missing(*_: object) -> None:
        raise Unavailable("there is no C++ compiler")

    monkeypatch.setattr(library, "load", missing)
    with pytest.raises(Unavailable, match="no C\\+\\+ compiler"):
        verify()
    assert verify.said == []


def test_a_cell_that_another_process_has_is_a_sentence_and_not_the_end_of_others(verify, tmp_path, study, tiny_data):
    verify()
    (scratch,) = (tmp_path / "scratch").iterdir()
    session = make_session(study, tiny_data, tmp_path, simd=SETS[-1])
    session.scratch = scratch
    run = CellRun(session, CELL)
    outcome, other = verify(CELL, PLAIN)
    run.lock.release()
    assert outcome.verdict is Verdict.NOT_COMPARED
    assert re.match(r"resnet-1-0 cannot be compared now: process \d+ trains it already", outcome.sentence)
    assert other.verdict is Verdict.SAME


# ---- The command


@pytest.fixture
def command(study, tiny_data, runs, monkeypatch, capsys):
    """``resnet-cifar verify`` in a checkout of the two cells: gives exit code, stdout and stderr."""
    two = study.model_dump()
    for section, key in (("model", "net"), ("cells", "net")):
        two[section][key] = ["resnet", "plain"]
    monkeypatch.chdir(runs.parent)
    Path("params.yaml").write_text(yaml.safe_dump(two))
    Path("data").mkdir()
    Path("data/cifar10.safetensors").symlink_to(tiny_data)
    monkeypatch.setenv("RESNET_CIFAR_SIMD", SETS[0])
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["resnet-cifar", "verify", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code, *capsys.readouterr()

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_command_verifies_the_smallest_network_and_says_first_how_long_it_takes(command, monkeypatch):
    monkeypatch.setattr(verification, "estimate", estimate.estimate)
    monkeypatch.setattr(estimate, "MEASURED", 0.0)
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["model"]["n"] = values["cells"]["n"] = [2, 1]
    Path("params.yaml").write_text(yaml.safe_dump(values))
    code, out, err = command()
    assert code == 0
    assert out.startswith("resnet-1-0: same bytes at the evaluation at iteration 2; ")
    assert out.count("\n") == 1
    assert re.fullmatch(LENGTH.format(r"\d+ s") + "\n", err)


def test_an_altered_run_is_exit_code_1_and_so_is_one_beside_what_cannot_be_compared(command, runs):
    rewrite(runs, lambda rows: rows[0].update(test_error="0.000000"), as_recorded=True)
    code, out, _ = command("resnet-1-0")
    assert (code, out.startswith("resnet-1-0 was altered after its training: ")) == (1, True)
    shutil.rmtree(runs / PLAIN.name)
    assert command("--all")[0] == 1


def test_of_several_cells_the_command_prints_a_table(command, runs):
    rewrite(runs, lambda rows: rows[1].update(lr="0.3"), as_recorded=False)
    code, out, _ = command("--all", "--iterations", "5")
    *sentences, header, resnet, plain = out.splitlines()
    assert code == 1
    assert [header, resnet, plain] == [
        "Cell        Network   Up to  Outcome",
        "resnet-1-0  ResNet-8      2  different bytes",
        "plain-1-0   Plain-8       4  same bytes",
    ]
    assert len(sentences) == 2
    assert sentences[0].startswith("resnet-1-0: different bytes; the first difference lies between iterations 2 and 4")
    assert sentences[1].startswith("plain-1-0: same bytes ")


def test_interrupted_in_its_second_cell_the_command_has_said_the_first_and_does_not_train_it_again(
    command, tmp_path, monkeypatch
):
    with stopped(PLAIN, 2):
        code, out, _ = command("--all", "--iterations", "6")
    assert code == 128 + signal.SIGTERM
    assert re.fullmatch(r"resnet-1-0: same bytes at each of 3 evaluations up to iteration 6; .+\n", out)
    assert len(states(tmp_path)) == 2
    trained = []
    turn = CellRun.turn
    monkeypatch.setattr(CellRun, "turn", lambda self: (trained.append(self.cell), turn(self))[1])
    code, out, err = command("--all", "--iterations", "6")
    assert (code, out.count(": same bytes ")) == (0, 2)
    assert set(trained) == {PLAIN}
    assert "plain-1-0: goes on from iteration 2" in err
    assert states(tmp_path) == []


def test_what_cannot_be_compared_has_an_exit_code_of_its_own_and_so_has_a_missing_engine(command, runs, monkeypatch):
    shutil.rmtree(runs / "resnet-1-0")
    code, out, _ = command("resnet-1-0")
    assert (code, out.startswith("resnet-1-0 has no finished run in runs: ")) == (3, True)
    monkeypatch.setenv("RESNET_CIFAR_SIMD", "none")
    code, out, _ = command("--all")
    assert (code, out.startswith("resnet-1-0 has no finished run in runs: ")) == (3, True)
    code, out, err = command("plain-1-0")
    assert (code, out) == (4, "")
    assert err.startswith(
        "not compared: the native engine, whose bytes these are, cannot be used here (RESNET_CIFAR_SIMD"
    )
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--iterations", "1"], "error: the first evaluation is at iteration 2: --iterations should be 2 or more."),
        (["--all", "plain-1-0"], "error: --all means every cell of params.yaml"),
        (["resnet-0-0"], "error: 'resnet-0-0' is not a cell"),
    ],
)
def test_bad_arguments_are_one_line(command, arguments, sentence):
    code, out, _ = command(*arguments)
    assert out == ""
    assert code.startswith(sentence)
    assert "\n" not in code
