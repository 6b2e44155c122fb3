"""The parameters: composition, checks, and one sentence that names the key for each mistake."""

import shutil

import pytest
import yaml
from conftest import ROOT, compose_to

from resnet_cifar import params
from resnet_cifar.errors import InputError


def test_params_yaml_is_the_composition_of_conf(compose):
    assert (ROOT / "params.yaml").read_text() == compose()


@pytest.mark.parametrize("override", ["model.n=9", "model.n=[9]", "model.n='9'", "preset=quick"])
def test_presets_and_single_values_compose(compose, override):
    loaded = params.Params.model_validate(yaml.safe_load(compose(override)))
    if "model.n" in override:
        assert loaded.cells.n == [9]


def test_comma_text_becomes_a_list(compose):
    loaded = params.Params.model_validate(yaml.safe_load(compose("model.n='3,9'", "train.seeds=4")))
    assert [cell.name for cell in loaded.list_cells()] == ["resnet-3-4", "resnet-9-4"]


def test_presets_have_the_same_keys():
    """What one preset sets the other sets too, so that switching presets leaves nothing behind."""

    def keys(values: object, path: str = "") -> set[str]:
        if not isinstance(values, dict):
            return {path}
        return set().union(*(keys(value, f"{path}.{key}") for key, value in values.items()))

    paper, *others = (keys(yaml.safe_load(path.read_text())) for path in sorted((ROOT / "conf/preset").iterdir()))
    assert others
    assert all(other == paper for other in others)


def test_a_study_of_ones_own_is_one_more_file(tmp_path):
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    text = (ROOT / "conf/preset/paper.yaml").read_text()
    (tmp_path / "conf/preset/half.yaml").write_text(text.replace("preset: paper", "preset: half"))
    compose_to(tmp_path / "params.yaml", tmp_path / "conf", "preset=half", "train.lr=0.05")
    loaded = params.load(tmp_path / "params.yaml")
    assert (loaded.preset, loaded.train.lr, loaded.train.iterations) == ("half", 0.05, 64_000)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.n=0"], r"model\.n is 0; it should be greater than or equal to 1"),
        (["model.n=[3,x]"], r"model\.n is 'x'; it should be a valid integer"),
        (["model.n=[]"], r"model\.n: the list is empty"),
        (["model.n=[3,3]"], r"model\.n: \[3, 3\] names a value twice"),
        (["model.net=vgg"], r"model\.net is 'vgg'; it should be 'resnet' or 'plain'"),
        (["model.shortcut=C"], r"model\.shortcut is 'C'; it should be 'A' or 'B'"),
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
        (["train.warmup.iterations=80"], r"train\.warmup\.iterations: 80 is past the end"),
        (["train.precision=int8"], r"train\.precision is 'int8'; it should be 'fp32', 'bf16' or 'fp16'"),
        (["train.batch_size=50001"], r"train\.batch_size: a batch of 50001 is larger.*50000 images"),
        (["data.validation=5000", "train.batch_size=45001"], r"train\.batch_size: .*at most 45000 images"),
        (["data.validation=50000"], r"data\.validation: 50000 leaves no training image"),
        (["data.validation=-1"], r"data\.validation is -1"),
        (["data.normalize=none"], r"data\.normalize is 'none'; it should be 'pixel_mean' or 'channel'"),
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
    values = yaml.safe_load(compose())
    values["model"]["n"] = [9]
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=r"cells\.n is \[3, 5, 7, 9\] but model\.n is \[9\]"):
        params.load(path)


def test_no_file_and_no_yaml_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        params.load(tmp_path / "params.yaml")
    for content in (b"a: [", b"a: \xff"):
        (tmp_path / "params.yaml").write_bytes(content)
        with pytest.raises(InputError, match="is not YAML"):
            params.load(tmp_path / "params.yaml")


def test_batch_larger_than_the_data(paper_params):
    with pytest.raises(InputError, match="at most 100 images"):
        paper_params.check_batch(100)
