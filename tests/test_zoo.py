"""The networks as timm's users meet them."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from conftest import ROOT, committed
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import GraphExtractNet, group_parameters
from timm.optim import param_groups_layer_decay
from torch import nn

import resnet_cifar.zoo  # noqa: F401  registers the networks
from resnet_cifar.checkpoint import load_model, read
from resnet_cifar.dataset import load
from resnet_cifar.errors import InputError
from resnet_cifar.numerics.models import Architecture, CifarResNet
from resnet_cifar.numerics.weights import serialize
from resnet_cifar.zoo import TimmCifarResNet

DATA = ROOT / "data/cifar10.safetensors"
NETWORKS = [(net, n) for net in ("plain", "resnet") for n in (3, 5, 7, 9, 18)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A ResNet-20 whose normalisation and batch-norm statistics are not what a new network has."""
    torch.manual_seed(0)
    model = CifarResNet(Architecture("resnet", 3))
    model.set_normalization(torch.rand(3, 32, 32), torch.ones(3, 1, 1))
    model(torch.rand(8, 3, 32, 32))
    path = tmp_path_factory.mktemp("zoo") / "weights.safetensors"
    path.write_bytes(serialize(model.state_dict(), "resnet", 3, 0))
    return path


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def trained(checkpoint) -> CifarResNet:
    return load_model(checkpoint)[0]


def pretrained(checkpoint: Path, name: str = "resnet20_cifar10", **kwargs: object) -> torch.nn.Module:
    """timm's way to new heads on trained weights."""
    overlay = {"file": str(checkpoint)}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()


def test_all_networks_are_registered():
    assert timm.list_models("*_cifar10") == [f"{net}{6 * n + 2}_cifar10" for net, n in NETWORKS]


def test_what_is_pretrained_is_seed_0_of_the_published_study():
    """Byte for byte what dvc.lock names and store/ holds."""
    study = yaml.safe_load((ROOT / "conf/preset/paper.yaml").read_text())
    names = {f"resnet{6 * n + 2}_cifar10": f"resnet-{n}-0" for n in study["model"]["n"]}
    assert timm.list_models("*_cifar10", pretrained=True) == list(names)
    for name, cell in names.items():
        file = Path(timm.get_pretrained_cfg(name).file)
        assert read(file)[0].name == cell
        md5 = hashlib.md5(file.read_bytes()).hexdigest()
        assert (ROOT / "store/files/md5" / md5[:2] / md5[2:]).read_bytes() == file.read_bytes()
        assert f"- path: runs/{cell}/weights.safetensors\n      hash: md5\n      md5: {md5}\n" in committed("dvc.lock")


@pytest.mark.skipif(not DATA.is_file(), reason="needs the data set: dvc repro preprocess")
@pytest.mark.parametrize(("name", "errors"), [("resnet20", 37), ("resnet32", 43), ("resnet44", 34), ("resnet56", 39)])
def test_a_pretrained_network_makes_the_published_errors(name, errors):
    """By PyTorch, among the first 500 images; the native engine found as many, and those of the table in all."""
    test = load(DATA).test
    model = timm.create_model(f"{name}_cifar10", pretrained=True).eval()
    with torch.inference_mode():
        batches = zip(test.images[:500].split(100), test.labels[:500].split(100), strict=True)
        assert sum(int((model(pixels / 255).argmax(1) != labels).sum()) for pixels, labels in batches) == errors


@pytest.mark.parametrize(("net", "n"), NETWORKS)
def test_a_name_is_the_network_it_says(net, n):
    with torch.device("meta"):
        model = timm.create_model(f"{net}{6 * n + 2}_cifar10")
        expected = CifarResNet(Architecture(net, n))
    assert model.architecture == expected.architecture
    shapes, wanted = ({name: each.shape for name, each in m.state_dict().items()} for m in (model, expected))
    assert shapes == wanted


def test_checkpoint_gives_the_same_logits(checkpoint, trained, images):
    model = timm.create_model("resnet20_cifar10", checkpoint_path=str(checkpoint)).eval()
    with torch.inference_mode():
        assert torch.equal(model(images), trained(images))
        assert torch.equal(model.forward_features(images), trained.forward_features(images))


def test_checkpoints_of_other_networks_are_refused(checkpoint):
    for name, kwargs in (("resnet32_cifar10", {}), ("resnet20_cifar10", {"num_classes": 100})):
        with pytest.raises(RuntimeError, match=r"Missing key|size mismatch"):
            timm.create_model(name, checkpoint_path=str(checkpoint), **kwargs)
    for kwargs in ({}, {"num_classes": 100}, {"features_only": True}):
        with pytest.raises(InputError, match="holds the weights of a ResNet-20, not of a ResNet-32"):
            pretrained(checkpoint, "resnet32_cifar10", **kwargs)
        with pytest.raises(InputError, match="holds the weights of a ResNet-20, not of a Plain-20"):
            pretrained(checkpoint, "plain20_cifar10", **kwargs)
    with pytest.raises(InputError, match="another network"):
        pretrained(checkpoint, num_classes=100, shortcut="B")


def test_files_of_other_origin_are_judged_by_their_tensors(trained, images, tmp_path):
    """A network that timm's own training saved says nothing of cells."""
    path = tmp_path / "model_best.pth.tar"
    torch.save({"state_dict": trained.state_dict()}, path)
    with torch.inference_mode():
        assert torch.equal(pretrained(path)(images), trained(images))
    with pytest.raises(InputError, match="another network"):
        pretrained(path, "resnet32_cifar10", num_classes=100)


def test_new_head_keeps_the_trained_features(checkpoint, trained, images):
    with torch.inference_mode():
        features = trained.forward_features(images).mean((2, 3))
        model = pretrained(checkpoint, num_classes=100)
        assert model.num_classes == 100
        assert model(images).shape == (4, 100)
        torch.testing.assert_close(model.forward_head(model.forward_features(images), pre_logits=True), features)
        torch.testing.assert_close(pretrained(checkpoint, num_classes=0)(images), features)


def test_classifier_can_be_replaced(images):
    model = timm.create_model("resnet20_cifar10").eval()
    assert model.get_classifier() is model.fc
    assert (model.num_features, model.head_hidden_size) == (64, 64)
    model.reset_classifier(7)
    assert model.get_classifier().weight.shape == (7, 64)
    assert model.to(torch.bfloat16).reset_classifier(5) is None
    assert (model.fc.weight.dtype, model.fc.out_features) == (torch.bfloat16, 5)
    model.float().reset_classifier(0)
    assert model(images).shape == (4, 64)
    model.reset_classifier(0, "")
    assert model(images).shape == (4, 64, 8, 8)


def test_features_are_the_stages_of_the_trained_network(checkpoint, trained, images):
    stages = []
    for stage in (trained.layer1, trained.layer2, trained.layer3):
        stage.register_forward_hook(lambda *call: stages.append(call[-1]))
    extractor = pretrained(checkpoint, features_only=True)
    with torch.inference_mode():
        trained(images)
        maps = extractor(images)
        assert [tuple(each.shape) for each in maps] == [(4, 16, 32, 32), (4, 32, 16, 16), (4, 64, 8, 8)]
        assert all(torch.equal(x, y) for x, y in zip(maps, stages, strict=True))
        last = pretrained(checkpoint, features_only=True, out_indices=(-1,))
        assert torch.equal(last(images)[0], stages[2])
    assert extractor.feature_info.channels() == [16, 32, 64]
    assert extractor.feature_info.reduction() == [1, 2, 4]
    assert extractor.feature_info.module_name() == ["layer1", "layer2", "layer3"]


def test_intermediates_can_stop_early(images):
    model = timm.create_model("plain20_cifar10").eval()
    with torch.inference_mode():
        x, maps = model.forward_intermediates(images, indices=[0, 1], stop_early=True)
        assert torch.equal(x, maps[1])
        x, _ = model.forward_intermediates(images, indices=[0])
        assert torch.equal(x, model.forward_features(images))
    with pytest.raises(InputError, match="NCHW"):
        model.forward_intermediates(images, output_fmt="NLC")


def test_timms_transform_gives_the_image_in_0_1():
    """The checkpoint normalises; timm must neither do so too nor crop."""
    model = timm.create_model("resnet20_cifar10")
    pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    transform = create_transform(**resolve_data_config(model=model))
    assert torch.equal(transform(Image.fromarray(pixels.numpy())), pixels.permute(2, 0, 1) / 255)
    assert model.default_cfg is model.pretrained_cfg
    shown = {key: model.pretrained_cfg[key] for key in ("num_classes", "input_size", "first_conv", "classifier")}
    assert shown == {"num_classes": 10, "input_size": (3, 32, 32), "first_conv": "conv1", "classifier": "fc"}
    assert model.pretrained_cfg["pool_size"] == (8, 8)


def test_options():
    with torch.device("meta"):
        model = timm.create_model("resnet20_cifar10", shortcut="B")
    assert sum(parameter.numel() for parameter in model.parameters()) == 272_474
    with pytest.raises(InputError, match="RGB"):
        timm.create_model("resnet20_cifar10", in_chans=1)
    with pytest.raises(InputError, match="'A' or 'B'"):
        timm.create_model("resnet20_cifar10", shortcut="C")
    with pytest.raises(InputError, match="net is 'ResNet'; it must be 'resnet' or 'plain'"):
        TimmCifarResNet("ResNet", n=3)
    model.set_grad_checkpointing(enable=False)
    with pytest.raises(InputError, match="no gradient checkpointing"):
        model.set_grad_checkpointing()


def test_dropout_is_off_in_inference():
    model = timm.create_model("resnet20_cifar10", drop_rate=0.5, num_classes=0)
    x = torch.rand(4, 64, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (model.forward_head(x) == 0).any()
    assert torch.equal(model.eval().forward_head(x), x.mean((2, 3)))


def test_a_new_network_has_he_initialization():
    """Normal, mean 0 and standard deviation sqrt(2 / fan-in), in each layer within five standard errors."""
    torch.manual_seed(0)
    model = timm.create_model("resnet32_cifar10", shortcut="B")
    pooled = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.detach()
            z = (weight / (2 / weight[0].numel()) ** 0.5).flatten()
            assert abs(z.mean()) < 5 / len(z) ** 0.5
            assert abs(z.std() - 1) < 5 / (2 * len(z)) ** 0.5
            pooled.append(z)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    assert (model.fc.bias == 0).all()
    assert model.fc.weight[0].numel() == 64
    # A normal distribution has 4.55% beyond two standard deviations; a uniform one of the same width none.
    assert (torch.cat(pooled).abs() > 2).double().mean().item() == pytest.approx(0.0455, abs=0.002)


def test_torchs_seed_decides_a_new_network():
    seeded = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        seeded.append(timm.create_model("plain20_cifar10").layer1[0].conv1.weight)
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])


def test_images_that_are_not_the_networks_are_refused(images):
    model = timm.create_model("resnet20_cifar10").eval()
    extractor = timm.create_model("resnet20_cifar10", features_only=True)
    for wrong in ((images * 255).byte(), images[:, :1], images[:, :, :1, :1]):
        for take in (model, model.forward_features, model.forward_intermediates, extractor):
            with pytest.raises(ValueError, match=r"images of shape \(N, 3, 32, 32\)"):
                take(wrong)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_timms_graphs_are_the_network(images, training):
    """The other way to features: a trace of the network, in which batch normalisation counts on."""
    torch.manual_seed(0)
    model = timm.create_model("resnet20_cifar10", features_only=True, feature_cls="fx").train(training)
    torch.manual_seed(0)
    getter = timm.create_model("resnet20_cifar10", features_only=True).train(training)
    torch.testing.assert_close(model(images), getter(images))
    torch.testing.assert_close(list(model.buffers()), list(getter.buffers()))
    logits = GraphExtractNet(timm.create_model("plain20_cifar10").eval(), ["fc"])
    assert logits(images).shape == (4, 10)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", ["resnet20_cifar10", "plain20_cifar10"])
def test_a_scripted_network_is_the_network(name, images):
    model = timm.create_model(name).eval()
    scripted = torch.jit.script(model)
    assert torch.equal(scripted(images), model(images))
    with pytest.raises(torch.jit.Error, match="a network takes images of shape"):
        scripted((255 * images).byte())


def test_layer_wise_rates_fall_from_the_classifier_to_the_stem():
    """A fine-tuner's recipe: each layer learns half as fast as the next one."""
    model = timm.create_model("resnet20_cifar10")
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates = {}
    for group in param_groups_layer_decay(model, layer_decay=0.5):
        for parameter in group["params"]:
            name = names[parameter]
            layer = ".".join(name.split(".")[:2]) if name.startswith("layer") else name.partition(".")[0]
            assert rates.setdefault(layer, group["lr_scale"]) == group["lr_scale"]
    blocks = [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in range(3)]
    assert rates == {
        **dict.fromkeys(("conv1", "bn1"), 0.5**10),
        **{block: 0.5 ** (9 - index) for index, block in enumerate(blocks)},
        "fc": 1.0,
    }
    assert set(map(len, group_parameters(model, model.group_matcher(coarse=True)).values())) == {2, 3, 18}


def test_without_timm_the_message_names_the_extra():
    program = "import sys; sys.modules['timm'] = None; import resnet_cifar.zoo"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].endswith("in a clone, `pip install '.[zoo]'` brings it.")
