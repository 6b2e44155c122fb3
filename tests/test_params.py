"""The parameters: composition, checks, and one sentence that names the key for each mistake."""

import itertools
import re
import shutil
import subprocess

import pytest
import yaml
from conftest import ROOT, committed, compose_to
from dvc.utils.serialize import parse_yaml
from pydantic import BaseModel

from resnet_cifar import params
from resnet_cifar.errors import InputError
from resnet_cifar.params import Study


def test_params_yaml_is_the_composition_of_conf(tmp_path):
    expected = committed("params.yaml")
    listed = subprocess.run(["git", "ls-files", "conf"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(committed(name))
    compose_to(tmp_path / "params.yaml", tmp_path / "conf")
    assert expected == (tmp_path / "params.yaml").read_text()


def study_of(text: str) -> Study:
    return Study.model_validate(yaml.safe_load(text))


@pytest.mark.parametrize("override", ["model.n=9", "model.n=[9]", "model.n='9'"])
def test_single_values_compose(compose, override):
    assert study_of(compose(override)).cells.n == [9]


def test_comma_text_becomes_a_list(compose):
    loaded = study_of(compose("model.n='3,9'", "train.seeds=4"))
    assert [cell.name for cell in loaded.list_cells()] == ["resnet-3-4", "resnet-9-4"]


PRESETS = sorted((ROOT / "conf/preset").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_says_what_it_is_and_composes(compose, path):
    first, *rest = path.read_text().splitlines()
    assert first == "# @package _global_"  # else Hydra puts what it sets under the key `preset`
    said = list(itertools.takewhile(lambda line: line.startswith("# "), rest))
    assert said
    assert said[-1].endswith(".")
    assert study_of(compose(f"preset={path.stem}")).preset == path.stem


def _differing(one: dict, other: dict, path: str = "") -> set[str]:
    return {
        name
        for key in one
        for name in (
            _differing(one[key], other[key], f"{path}{key}.")
            if isinstance(one[key], dict)
            else [path + key] * (one[key] != other[key])
        )
    }


@pytest.mark.parametrize(
    ("preset", "parameter"),
    [
        ("article", "model.initialization"),
        ("bf16", "train.precision"),
        ("channels", "data.normalize"),
        ("classifier", "model.initialization"),
        ("projections", "model.shortcut"),
        ("split", "data.validation"),
    ],
)
def test_what_the_paper_leaves_open_is_one_parameter_changed_in_the_degradation_study(compose, preset, parameter):
    base, other = study_of(compose("preset=degradation")), study_of(compose(f"preset={preset}"))
    differing = _differing(base.model_dump(exclude={"preset", "cells"}), other.model_dump(exclude={"preset", "cells"}))
    assert differing - {"model.net", "model.n"} == {parameter}
    assert set(other.list_cells()) < set(base.list_cells())


def test_the_deep_preset_is_the_papers_protocol_with_its_warm_up(compose):
    deep = study_of(compose("preset=deep"))
    assert [cell.network for cell in deep.list_cells()] == ["ResNet-110"]
    assert (deep.recipe(deep.list_cells()[0]).warmup_iterations, deep.train.iterations) == (400, 64_000)


def test_the_paper_preset_is_the_papers_protocol(paper_study):
    """Section 4.2, written out here: 64,000 iterations, a tenth after 32,000 and 48,000; cells so far."""
    assert paper_study.train.iterations == 64_000
    assert paper_study.train.milestones == [32_000, 48_000]
    assert (paper_study.train.lr, paper_study.train.gamma, paper_study.train.momentum) == (0.1, 0.1, 0.9)
    assert (paper_study.train.batch_size, paper_study.train.weight_decay) == (128, 0.0001)
    assert (paper_study.train.warmup.min_n, paper_study.train.warmup.lr) == (18, 0.01)
    assert (paper_study.cells.net, paper_study.data.validation) == (["resnet"], 0)
    assert set(paper_study.cells.n) <= {3, 5, 7, 9}
    assert set(paper_study.cells.seed) <= {0, 1, 2, 3, 4}


def test_config_then_preset_then_override(compose):
    """What config.yaml says, the preset overrides, and -S overrides that, wherever it stands."""
    quick, paper = study_of(compose("preset=quick")), study_of(compose("preset=paper"))
    assert quick.train.iterations != paper.train.iterations
    assert quick.train.momentum == paper.train.momentum
    assert study_of(compose("preset=quick", "train.iterations=77")).train.iterations == 77
    assert study_of(compose("train.iterations=77", "preset=quick")).train.iterations == 77


def test_a_preset_may_set_any_parameter(tmp_path):
    """One more file with another value of every parameter, lists of cells included."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    values = {
        "preset": "own",
        "model": {"net": ["plain"], "n": [18, 1], "shortcut": "B", "initialization": "pytorch"},
        "data": {"validation": 5000, "normalize": "channel"},
        "train": {
            **{"seeds": [7], "iterations": 50, "batch_size": 64, "lr": 0.2, "milestones": [9], "gamma": 0.5},
            **{"warmup": {"min_n": 2, "iterations": 3, "lr": 0.02}, "momentum": 0.8, "weight_decay": 0.001},
            **{"precision": "bf16", "eval_every": 5},
        },
    }
    (tmp_path / "conf/preset/own.yaml").write_text("# @package _global_\n" + yaml.safe_dump(values))
    compose_to(tmp_path / "params.yaml", tmp_path / "conf", "preset=own")
    loaded = params.load(tmp_path / "params.yaml")
    assert loaded.model_dump(exclude={"cells"}) == values
    assert [cell.name for cell in loaded.list_cells()] == ["plain-18-7", "plain-1-7"]
    plain = yaml.safe_load((ROOT / "conf/config.yaml").read_text())
    for section in ("model", "data", "train"):  # none is left out above, or has its value of config.yaml
        assert values[section].keys() == plain[section].keys()
        assert all(value != plain[section][key] for key, value in values[section].items())


def test_the_comments_of_conf_are_the_descriptions_of_the_fields():
    text = (ROOT / "conf/config.yaml").read_text().partition("\n# The matrix")[0]
    comments, section = {}, []
    for line in text.splitlines():
        if match := re.fullmatch(r"( *)(\w+):\s*(?:[^#]*?)(?:\s+# (.*))?", line):
            indent, key, comment = match.groups()
            section = [*section[: len(indent) // 2], key]
            if comment:
                comments[".".join(section)] = comment
    described = {}

    def describe(model: type[BaseModel], path: str) -> None:
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                describe(field.annotation, f"{path}{name}.")
            else:
                described[path + name] = field.description

    for section_name in ("model", "data", "train"):
        describe(Study.model_fields[section_name].annotation, f"{section_name}.")
    assert len(described) == 19
    assert comments == described


@pytest.mark.parametrize(
    "written",
    ["1e-4", "1E-4", "1.e-4", "1.0e-4", "+1e-4", "-1e3", "1e3", "1.5E+3", ".5", "5.", "010", "09", "1_000", "0", "-3"],
)
def test_a_number_is_the_one_that_dvc_records(written):
    """In dvc.lock; YAML's older version, which PyYAML reads, has other numbers."""
    recorded = parse_yaml(f"a: {written}", "params.yaml")["a"]
    (read,) = params.as_list(written)
    assert (read, type(read)) == (recorded, type(recorded))


def test_a_rate_may_be_written_by_hand_as_people_write_it(compose, tmp_path):
    text = compose("preset=paper")
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("weight_decay: 0.0001", "weight_decay: 5e-4"))
    assert params.load(path).train.weight_decay == 0.0005
    path.write_text(text.replace("batch_size: 128", "batch_size: 0128"))
    assert params.load(path).train.batch_size == 128
    path.write_text(text.replace("batch_size: 128", "batch_size: 1:30"))
    with pytest.raises(InputError, match=r"train\.batch_size is '1:30'; it should be a valid integer"):
        params.load(path)


@pytest.mark.parametrize("text", ["3,[9", "3,*deep", "3,: 9"])
def test_a_list_in_a_text_that_is_no_yaml_is_one_sentence(compose, tmp_path, text):
    values = yaml.safe_load(compose("preset=quick"))
    values["model"]["n"] = text
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(
        InputError, match=rf"params\.yaml: '{re.escape(text)}' should be a value, or several with commas"
    ):
        params.load(tmp_path / "params.yaml")


def test_a_warm_up_that_no_network_has_may_be_longer_than_the_training(compose, tmp_path):
    short = ("train.iterations=300", "train.milestones=[200]")
    (tmp_path / "params.yaml").write_text(compose("preset=paper", *short))
    study = params.load(tmp_path / "params.yaml")
    assert study.train.warmup.iterations == 400
    assert {study.recipe(cell).warmup_iterations for cell in study.list_cells()} == {0}


def test_a_trillion_iterations_are_parameters_like_others(compose, tmp_path):
    """What training them allocates: tests/test_batches.py."""
    (tmp_path / "params.yaml").write_text(compose("train.iterations=1000000000000"))
    assert params.load(tmp_path / "params.yaml").train.iterations == 10**12


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.n=0"], r"model\.n is 0; it should be greater than or equal to 1"),
        (["model.n=[3,x]"], r"model\.n is 'x'; it should be a valid integer"),
        (["model.n=[]"], r"model\.n: the list is empty"),
        (["model.n=[3,3]"], r"model\.n: \[3, 3\] names a value twice"),
        (["model.net=vgg"], r"model\.net is 'vgg'; it should be 'resnet' or 'plain'"),
        (["model.shortcut=C"], r"model\.shortcut is 'C'; it should be 'A' or 'B'"),
        (["model.initialization=zeros"], r"model\.initialization is 'zeros'; it should be 'he', 'he_convolutions' or"),
        (["train.seeds=[]"], r"train\.seeds: the list is empty"),
        (["train.seeds=-1"], r"train\.seeds is -1; it should be greater than or equal to 0"),
        (["train.seeds=4294967296"], r"train\.seeds is 4294967296; it should be less than"),
        (["train.lr=fast"], r"train\.lr is 'fast'; it should be a valid number"),
        (["train.lr=0"], r"train\.lr is 0; it should be greater than 0"),
        (["train.lr=nan"], r"train\.lr is nan; it should be a finite number"),
        (["train.iterations=1.5"], r"train\.iterations is 1\.5; it should be a valid integer"),
        (["train.momentum=1"], r"train\.momentum is 1; it should be less than 1"),
        (["train.milestones=[40,80]"], r"train\.milestones: 80 is past the end.*train\.iterations, 80"),
        (["train.milestones=[60,40]"], r"train\.milestones: \[60, 40\] must rise"),
        (["model.n=18", "train.warmup.iterations=80"], r"train\.warmup\.iterations: 80 is past the end"),
        (["train.precision=int8"], r"train\.precision is 'int8'; it should be 'fp32', 'bf16' or 'fp16'"),
        (["train.batch_size=50001"], r"train\.batch_size: a batch of 50001 is larger.*50000 images"),
        (["data.validation=5000", "train.batch_size=45001"], r"train\.batch_size: .*at most 45000 images"),
        (["data.validation=50000"], r"data\.validation: 50000 leaves no training image"),
        (["data.validation=-1"], r"data\.validation is -1"),
        (["data.normalize=none"], r"data\.normalize is 'none'; it should be 'pixel_mean' or 'channel'"),
        (["train.batch_size=1"], r"train\.batch_size is 1; it should be greater than or equal to 2"),
        (["train.eval_every=0"], r"train\.eval_every is 0; it should be greater than or equal to 1"),
        (["train.weight_decay=-1"], r"train\.weight_decay is -1; it should be greater than or equal to 0"),
        (["train.momentum=-1"], r"train\.momentum is -1; it should be greater than or equal to 0"),
        (["+train.nesterov=true"], r"train\.nesterov is not a parameter"),
        (["~train.lr"], r"train\.lr is missing"),
    ],
)
def test_a_mistake_gives_one_sentence_that_names_the_key(compose, tmp_path, overrides, sentence):
    path = tmp_path / "params.yaml"
    path.write_text(compose("preset=quick", "train.iterations=80", "train.milestones=[40,60]", *overrides))
    with pytest.raises(InputError, match=sentence) as caught:
        params.load(path)
    assert "\n" not in str(caught.value)


def test_a_hand_edit_of_one_of_two_places_is_caught(compose, tmp_path):
    """`dvc repro` reads params.yaml as it is: model.n without cells.n would train what was not asked for."""
    values = yaml.safe_load(compose("preset=quick"))
    values["model"]["n"] = [9]
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=r"cells\.n is \[3, 5, 7, 9\] but model\.n is \[9\]"):
        params.load(path)


def test_no_file_and_no_yaml_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        params.load(tmp_path / "params.yaml")
    for content in (b"a: [", b"a: \xff", b"a: " + b"9" * 5000):
        (tmp_path / "params.yaml").write_bytes(content)
        with pytest.raises(InputError, match="is not YAML"):
            params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["# @package _global_\ntrain: {lr: 1}", "train: {lr: 1}", "preset: own"])
def test_a_preset_without_its_first_lines_is_told_of_them(tmp_path, text):
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "conf/preset/own.yaml").write_text(text)
    compose_to(tmp_path / "params.yaml", tmp_path / "conf", "preset=own")
    with pytest.raises(InputError, match="conf/preset/ begins with `# @package _global_` and `preset: NAME`"):
        params.load(tmp_path / "params.yaml")


def test_batch_larger_than_the_data(paper_study):
    with pytest.raises(InputError, match="at most 100 images"):
        paper_study.check_batch(100)
