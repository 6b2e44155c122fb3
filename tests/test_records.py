"""run.json: a round trip, strict reading, and differences in words."""

import json

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from resnet_cifar.cells import Cell, RunFiles, run_files
from resnet_cifar.numerics import bits
from resnet_cifar.numerics.weights import digest
from resnet_cifar.training import record
from resnet_cifar.training.engines import read_run
from resnet_cifar.training.record import Arithmetic, Circumstances, Earlier, Question, Record, RecordError
from resnet_cifar.training.train import train_cells

CELL = Cell("resnet", 1, 0)
QUESTION = Question(cell="resnet-1-0", parameters="a" * 64, data="b" * 64)
NATIVE = Arithmetic(engine="native", precision="fp32", bits=1)
MADE = Record.model_validate(
    {
        "question": QUESTION.model_dump(),
        "arithmetic": NATIVE.model_dump(),
        "circumstances": {
            **{"device": "a CPU", "threads": 8, "simd": "avx2", "torch": "2.14.1", "numpy": "2.4", "code": "c" * 64},
        },
        "iterations": 64000,
        "seconds": 1234.5,
        "images_per_second": 6635.9,
        "resumed_at": [100],
        "weights_sha256": "d" * 64,
        "history_sha256": "e" * 64,
    }
)


@pytest.fixture
def files(session) -> RunFiles:
    """Of a trained cell."""
    assert train_cells(session, [CELL], lambda _: None) == {}
    return run_files(session.runs, CELL)


def test_a_round_trip():
    content = MADE.content()
    assert Record.model_validate_json(content) == MADE
    assert content.endswith(b"}\n")
    assert json.loads(content)["arithmetic"] == {"engine": "native", "precision": "fp32", "bits": 1}
    assert MADE.cell == CELL


def test_of_parts_each_has_its_circumstances():
    first = MADE.circumstances.model_copy(update={"device": "another CPU"})
    second = MADE.circumstances.model_copy(update={"threads": 3})
    parts = [Earlier(until=100, circumstances=first), Earlier(until=250, circumstances=second)]
    made = MADE.model_copy(update={"earlier": parts})
    assert Record.model_validate_json(made.content()) == made
    last = MADE.circumstances
    for after, until, expected in (
        (0, 1, [first]),
        (0, 100, [first]),
        (0, 101, [first, second]),
        (99, 250, [first, second]),
        (100, 250, [second]),
        (249, 251, [second, last]),
        (250, 251, [last]),
        (0, 64000, [first, second, last]),
    ):
        assert made.circumstances_between(after, until) == expected
    assert MADE.circumstances_between(0, 64000) == [last]


def set_to(value: object, *path: str):
    def change(values: dict) -> None:
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("seconds"),
        set_to(1, "notes"),
        set_to("64000", "iterations"),
        set_to("d" * 63, "weights_sha256"),
        set_to("D" * 64, "weights_sha256"),
        set_to("quantum", "arithmetic", "engine"),
        set_to(None, "question"),
        set_to([1.5], "resumed_at"),
        set_to([{"until": 100}], "earlier"),
    ],
)
def test_reading_is_strict(tmp_path, change):
    values = json.loads(MADE.content())
    change(values)
    files = RunFiles(tmp_path)
    files.record.write_text(json.dumps(values))
    with pytest.raises(RecordError, match=r"its run.json is not a record of a run"):
        record.read(files)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (QUESTION, {"cell": "plain-1-0"}, "its cell is resnet-1-0, not plain-1-0"),
        (QUESTION, {"parameters": "f" * 64}, "its parameters' digest is aaaaaaaaaaaa, not ffffffffffff"),
        (QUESTION, {"data": "f" * 64}, "its data set's digest is bbbbbbbbbbbb, not ffffffffffff"),
        (NATIVE, {"engine": "eager"}, "its engine is native, not eager"),
        (NATIVE, {"precision": "bf16"}, "its precision is fp32, not bf16"),
        (NATIVE, {"bits": 2}, "its version of the native engine's bits is 1, not 2"),
        (NATIVE, {"cudnn": 91002}, "its cuDNN version is None, not 91002"),
    ],
)
def test_a_difference_in_words(one, other, words):
    assert one.difference(one.model_copy(update=other)) == words
    assert one.difference(one.model_copy()) is None


def test_everything_that_may_differ_has_a_name_in_words():
    parts = (Question, Arithmetic, Circumstances)
    fields = [field for part in parts for field in part.model_fields.values()]
    assert all(field.description for field in fields)


def test_what_training_leaves_is_read(session, files):
    found = record.read(files)
    assert found.question == session.question(CELL)
    assert found.arithmetic == session.arithmetic(CELL)
    assert found.iterations == 6
    assert found.images_per_second == pytest.approx(6 * 8 / found.seconds, rel=0.1, abs=0.1)
    assert found.arithmetic.threads == torch.get_num_threads()
    assert found.weights_sha256 == digest(load_file(files.weights))
    assert read_run(files, session.question(CELL), session.computer.code) == found
    assert session.is_trained(CELL)


@pytest.mark.parametrize("name", ["weights", "history", "record"])
def test_a_missing_file_is_named(files, name):
    path = getattr(files, name)
    path.unlink()
    with pytest.raises(RecordError, match=f"^its {path.name} is missing$"):
        record.read(files)
    path.symlink_to(path)
    with pytest.raises(RecordError, match=rf"^its {path.name} cannot be read \(.+\)$"):
        record.read(files)


def test_damaged_and_altered_files_are_named(files):
    history, weights = files.history.read_bytes(), files.weights.read_bytes()
    files.history.write_bytes(history + b"7,0.1\n")
    with pytest.raises(RecordError, match=r"its history.csv has the digest \w{12}; its run.json says \w{12}"):
        record.read(files)
    files.history.write_bytes(history)
    files.weights.write_bytes(weights[:-1])
    with pytest.raises(RecordError, match=r"its weights.safetensors is damaged"):
        record.read(files)
    state = load(weights)
    save_file(state | {"fc.bias": state["fc.bias"].bfloat16()}, files.weights)
    with pytest.raises(RecordError, match=r"its weights.safetensors is damaged"):
        record.read(files)
    state["fc.bias"][0] += 1e-6
    save_file(state, files.weights)
    with pytest.raises(RecordError, match=r"its weights.safetensors has the digest"):
        record.read(files)
    files.record.write_text("{")
    with pytest.raises(RecordError, match=r"its run.json is not a record of a run"):
        record.read(files)


def test_the_digest_is_the_tensors_and_not_the_files(files):
    """Written by another version of safetensors, the weights are still the same."""
    save_file(load_file(files.weights), files.weights, {"another": "note"})
    record.read(files)


def test_a_run_of_another_question_is_no_answer(session, files):
    other = session.question(CELL).model_copy(update={"parameters": "f" * 64})
    with pytest.raises(RecordError, match=r"^its parameters' digest is \w{12}, not ffffffffffff$"):
        read_run(files, other, session.computer.code)


@pytest.mark.parametrize(
    ("change", "kept"),
    [({"threads": 7, "device": "another", "torch": "9.9"}, True), ({"code": "f" * 64}, False)],
    ids=["machine", "code"],
)
def test_what_another_machine_trained_is_kept_and_what_other_code_did_is_not(session, files, change, kept):
    """As a sweep does."""
    found = record.read(files)
    otherwise = found.arithmetic.model_copy(update=change)
    files.record.write_bytes(found.model_copy(update={"arithmetic": otherwise}).content())
    assert session.is_trained(CELL) == kept


@pytest.mark.parametrize(("version", "kept"), [(bits.NATIVE, True), (bits.NATIVE + 1, False)])
def test_what_the_native_engine_trained_is_kept_where_it_is_not(session, files, version, kept):
    native = Arithmetic(engine="native", precision="fp32", bits=version)
    files.record.write_bytes(record.read(files).model_copy(update={"arithmetic": native}).content())
    assert session.is_trained(CELL) == kept
