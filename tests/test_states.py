"""Saved states: whole or not there, never passed over in silence, and never half restored."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import advance, changed, make_session
from dvc.repo import Repo
from dvc.repo.experiments.utils import EXEC_TMP_DIR
from dvc.scm import Git
from safetensors import safe_open
from safetensors.torch import save_file

from resnet_cifar.cells import Cell
from resnet_cifar.errors import TrainingError
from resnet_cifar.numerics.eager import EagerEngine
from resnet_cifar.numerics.run import Run
from resnet_cifar.numerics.weights import KEY, digest
from resnet_cifar.training.record import Arithmetic, Circumstances, Question
from resnet_cifar.training.states import Past, StateFile, home

CELL = Cell("resnet", 1, 0)
QUESTION = Question(cell=CELL.name, parameters="a" * 64, data="b" * 64)
HERE = Arithmetic(engine="eager", precision="fp32", code="c" * 64, device="this one", threads=1, torch="2.14")


@pytest.fixture
def run(tiny_recipe, tiny_dataset) -> Run:
    return Run(tiny_recipe, tiny_dataset, EagerEngine(tiny_recipe, tiny_dataset, "fp32"))


@pytest.fixture
def saved(tiny_recipe, tiny_dataset, tmp_path) -> StateFile:
    """After five iterations: one point of the curve, one loss since."""
    trained = Run(tiny_recipe, tiny_dataset, EagerEngine(tiny_recipe, tiny_dataset, "fp32"))
    advance(trained, 5)
    state = StateFile(tmp_path, QUESTION, HERE)
    state.save(trained, Past(seconds=12.5, resumed_at=[2]))
    return state


def content(run: Run) -> tuple[str, object]:
    tensors, rest = run.saved()
    return digest(tensors), rest


def rewrite(path: Path, tensors: object = lambda tensors: tensors, note: object = lambda note: note) -> None:
    """Change tensors and note; the digest stays."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        before = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata[KEY] = json.dumps(note(json.loads(metadata[KEY])))
    save_file(tensors(before), path, metadata)


def test_a_run_goes_on_from_its_state(saved, run):
    past, aside = saved.restore(run)
    assert (past, aside) == (Past(seconds=12.5, resumed_at=[2, 5]), "")
    assert run.iteration == 5
    assert len(run.history().splitlines()) == 2
    assert saved.path.parent.name == "resnet-1-0"
    assert len(list(saved.path.parent.iterdir())) == 1  # no temporary file stays


def circumstances(**change: object) -> Circumstances:
    made = {"device": "this one", "threads": 2, "simd": "avx2", "torch": "2.14", "numpy": "2.4", "code": "c" * 64}
    return Circumstances(**made | change)


def test_what_a_part_was_computed_on_stays_when_another_machine_goes_on(saved, run):
    here, there = circumstances(), circumstances(device="that one", simd="avx512")
    past, _ = saved.restore(run)
    for now, iteration in ((here, 0), (here, 2), (there, 5), (there, 7), (here, 9)):
        past.go_on(now, iteration)
        saved.save(run, past)
        past, _ = saved.restore(run)
    assert past.circumstances == here
    assert [(part.until, part.circumstances) for part in past.earlier] == [(5, here), (9, there)]


def save_with(past: dict[str, object], saved: StateFile, run: Run) -> None:
    """As another version of the program would: the state as it is, and what it knows of the past."""
    saved.restore(run)
    saved.save(run, SimpleNamespace(model_dump=lambda: past))


def test_a_state_from_before_circumstances_were_saved_is_resumed(saved, run):
    save_with({"seconds": 3.0, "resumed_at": [2]}, saved, run)
    assert saved.restore(run) == (Past(seconds=3.0, resumed_at=[2, 5]), "")


@pytest.mark.parametrize("past", [{"seconds": 3.0, "weather": "fair"}, {"earlier": [{"until": 2}]}])
def test_a_state_with_a_past_of_another_version_is_no_reason_to_begin_anew(saved, run, past):
    """A new run would write over it."""
    save_with(past, saved, run)
    before = saved.path.read_bytes()
    with pytest.raises(
        TrainingError, match=f"^another version of this program saved {re.escape(str(saved.path))}: [^\n]*$"
    ):
        saved.restore(run)
    assert saved.path.read_bytes() == before


def test_dvcs_copies_of_the_checkout_are_where_they_are_looked_for(tmp_path):
    """Some of this is DVC's inside."""
    Git.init(str(tmp_path)).close()
    with Repo.init(str(tmp_path)) as repo:
        folders = [Path(repo.tmp_dir) / EXEC_TMP_DIR, Path(repo.experiments.tempdir_queue._standalone_tmp_dir)]
    for folder in folders:
        assert home(folder / "tmpname/scratch") == tmp_path / "scratch"
        assert home(folder / "tmpname/project/scratch") == tmp_path / "scratch"
    assert home(tmp_path / "scratch") == tmp_path / "scratch"
    assert home(Path("scratch")) == Path("scratch")


def test_without_a_state_it_is_new(tmp_path, run):
    assert StateFile(tmp_path, QUESTION, HERE).restore(run) == (Past(), "")
    assert run.iteration == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-9] + b"?" + path.read_bytes()[-8:]),
        lambda path: rewrite(path, note=lambda note: note | {"rest": note["rest"] | {"iteration": 4}}),
        lambda path: rewrite(path, note=lambda note: note | {"rest": note["rest"] | {"curve": []}}),
        lambda path: rewrite(path, note=lambda note: note | {"past": {"seconds": 0.0, "resumed_at": []}}),
        lambda path: rewrite(path, note=lambda _: ["nothing"]),
        lambda path: rewrite(path, tensors=lambda all_: all_ | {"engine.velocity": all_["engine.velocity"] + 1}),
        lambda path: rewrite(path, tensors=lambda all_: {name: x for name, x in all_.items() if name != "losses"}),
        lambda path: save_file({"x": torch.zeros(1)}, path),
        lambda path: save_file({"x": torch.zeros(1)}, path, {KEY: "{}"}),
    ],
    ids=[
        *("truncated", "empty", "value", "iteration", "curve", "past"),
        *("list", "velocity", "lacking", "foreign", "keyless"),
    ],
)
def test_a_damaged_state_is_said_and_changes_nothing(saved, run, damage):
    before = content(run)
    damage(saved.path)
    past, aside = saved.restore(run)
    assert past == Past()
    assert aside.startswith(str(saved.path))
    assert "is damaged" in aside or "cannot be read" in aside
    assert content(run) == before


@pytest.mark.parametrize("instead", [Path.mkdir, lambda path: path.symlink_to(path)], ids=["folder", "endless link"])
def test_a_state_that_cannot_be_opened_is_no_reason_to_begin_anew(saved, run, instead):
    """A new run might write over it; and safetensors calls it missing."""
    saved.path.rename(saved.path.with_suffix(".kept"))
    instead(saved.path)
    with pytest.raises(TrainingError, match=rf"^{re.escape(str(saved.path))} cannot be read \([^\n]*\): [^\n]*$"):
        saved.restore(run)


@pytest.mark.parametrize("change", ["shape", "type", "lacking", "more"])
def test_a_state_of_other_tensors_is_not_loaded_in_part(saved, run, change):
    """With a right digest: of an engine that lays its tensors out in another way. All but the last one fit."""
    tensors, rest = run.saved()
    last = max(name for name in tensors if name.startswith("engine."))
    odd = dict(tensors)
    if change == "lacking":
        del odd[last]
    else:
        key = "engine.z" if change == "more" else last
        odd[key] = tensors[last].double() if change == "type" else tensors[last][:-1].clone()
    saved.save(SimpleNamespace(saved=lambda: (odd, rest | {"iteration": 5})), Past())
    before = content(run)
    assert saved.restore(run) == (Past(), f"{saved.path} is another run's")
    assert content(run) == before


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"threads": 2}, "its number of CPU threads is 1, not 2"),
        ({"torch": "2.15"}, "its PyTorch version is 2.14, not 2.15"),
        ({"code": "d" * 64}, "its code's digest is cccccccccccc, not dddddddddddd"),
        ({"device": "that one"}, "its device is this one, not that one"),
        ({"variables": {"MKL_X": "1"}}, "its set of variables that change arithmetic is {}, not {'MKL_X': '1'}"),
        ({"engine": "cuda graph"}, "its engine is eager, not cuda graph"),
    ],
)
def test_a_state_that_was_computed_otherwise_stays_and_its_difference_is_said(saved, run, tmp_path, other, words):
    here = StateFile(tmp_path, QUESTION, HERE.model_copy(update=other))
    past, aside = here.restore(run)
    assert past == Past()
    assert aside == f"{saved.path} stays where it is: {words} as here"
    assert run.iteration == 0
    assert saved.path.exists()


def test_a_state_of_other_parameters_or_data_is_another_run_and_no_news(saved, run, tmp_path):
    for change in ({"parameters": "e" * 64}, {"data": "e" * 64}):
        here = StateFile(tmp_path, QUESTION.model_copy(update=change), HERE)
        assert here.path != saved.path
        assert here.restore(run) == (Past(), "")
    assert run.iteration == 0


def test_two_runs_of_a_cell_have_a_state_each(saved, run, tmp_path):
    other = StateFile(tmp_path, QUESTION.model_copy(update={"parameters": "e" * 64}), HERE)
    other.save(run, Past())
    other.remove()
    assert saved.path.exists()
    saved.remove()
    assert list(tmp_path.iterdir()) == []
    saved.remove()  # nothing is there: no error


def test_a_state_is_the_old_one_until_the_new_one_is_whole(saved, run, monkeypatch):
    before = saved.path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        saved.save(run, Past())
    monkeypatch.undo()
    assert Path(caught.value.filename) == saved.path
    assert saved.path.read_bytes() == before
    assert len(list(saved.path.parent.iterdir())) == 1


def test_a_state_is_known_by_what_decides_bytes(session, tiny_study, tiny_data, tmp_path):
    """Names of sessions that differ in a parameter, in one that this network does not use, and in nothing."""

    def name(study) -> str:
        other = make_session(study, tiny_data, tmp_path / "other")
        return StateFile(tmp_path, other.question(CELL), other.arithmetic(CELL)).path.name

    here = StateFile(tmp_path, session.question(CELL), session.arithmetic(CELL)).path.name
    assert name(tiny_study) == here
    assert name(changed(tiny_study, warmup={"min_n": 18, "iterations": 2, "lr": 0.01})) == here
    assert name(changed(tiny_study, weight_decay=0.0005)) != here
    assert name(changed(tiny_study, eval_every=3)) != here
