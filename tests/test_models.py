"""The networks against the paper: sizes, shortcuts, order of operations; what they take and refuse."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_cifar.numerics.models import Architecture, BasicBlock, BatchNorm, CifarResNet, ZeroPadShortcut

KINDS = [("resnet", "A"), ("resnet", "B"), ("plain", "A")]

# By hand: 3x3 convolutions 9*(3*16 + 2n*16*16 + 16*32 + (2n-1)*32*32 + 32*64 + (2n-1)*64*64), scale and shift of each
# convolution's batch normalisation, 65*10 for the classifier. B adds 16*32 + 32*64 and two batch normalisations: 2752.
PARAMETERS = {3: 269_722, 5: 464_154, 7: 658_586, 9: 853_018, 18: 1_727_962, 200: 19_421_274}
# Multiplications of convolutions and classifier for one image, in units of 10,000: each layer's weights times the
# pixels of its map, 1024, 256 or 64.
MULTIPLICATIONS = {3: 4055, 5: 6886, 7: 9717, 9: 12549, 18: 25289}


def on_meta(*architecture: object) -> CifarResNet:
    """A network of shapes alone, without memory."""
    with torch.device("meta"):
        return CifarResNet(Architecture(*architecture))


def seeded(*architecture: object) -> CifarResNet:
    """A network with torch's own first weights, always the same."""
    torch.manual_seed(0)
    return CifarResNet(Architecture(*architecture))


def randomize(model: nn.Module) -> nn.Module:
    """Give every parameter and statistic of batch normalisation a value of its own, so that none can be left out."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.sub_(1)
            module.running_mean.sub_(1)
    return model.double().eval()


def normalized(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """Batch normalisation of inference, written out; eps is torch's default."""
    mean, var, scale, shift = (
        state[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def shortcut_a(x: Tensor, channels: int, stride: int) -> Tensor:
    """Option A as a loop over pixels: every stride-th is copied, the further channels stay zero."""
    images, inputs, height, width = x.shape
    y = torch.zeros(images, channels, height // stride, width // stride, dtype=x.dtype)
    for row in range(height // stride):
        for column in range(width // stride):
            y[:, :inputs, row, column] = x[:, :, stride * row, stride * column]
    return y


def reference(x: Tensor, state: dict[str, Tensor], net: str, n: int, shortcut: str) -> Tensor:
    """The whole network as functions of its tensors, from section 4.2 of the paper."""
    x = (x - state["mean"]) / state["std"]
    x = normalized(F.conv2d(x, state["conv1.weight"], padding=1), state, "bn1").clamp(min=0)
    for stage in (1, 2, 3):
        for index in range(n):
            block = f"layer{stage}.{index}"
            stride = 2 if stage > 1 and index == 0 else 1
            y = F.conv2d(x, state[f"{block}.conv1.weight"], stride=stride, padding=1)
            y = normalized(y, state, f"{block}.bn1").clamp(min=0)
            y = normalized(F.conv2d(y, state[f"{block}.conv2.weight"], padding=1), state, f"{block}.bn2")
            if net == "resnet" and stride == 1:
                y = y + x
            elif net == "resnet" and shortcut == "A":
                y = y + shortcut_a(x, y.shape[1], 2)
            elif net == "resnet":
                projected = F.conv2d(x, state[f"{block}.downsample.0.weight"], stride=2)
                y = y + normalized(projected, state, f"{block}.downsample.1")
            x = y.clamp(min=0)
    return x.flatten(2).mean(2) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize(("n", "count"), PARAMETERS.items())
def test_parameter_counts(n, count):
    """Of the paper's rounded 0.27M to 19.4M (Table 6); a plain network has as many as option A (section 3.3)."""
    widths = 9 * (3 * 16 + 2 * n * 16**2 + 16 * 32 + (2 * n - 1) * 32**2 + 32 * 64 + (2 * n - 1) * 64**2)
    assert count == widths + 2 * (16 + 2 * n * (16 + 32 + 64)) + 65 * 10
    counts = {kind: sum(p.numel() for p in on_meta(kind[0], n, kind[1]).parameters()) for kind in KINDS}
    assert counts == {("resnet", "A"): count, ("plain", "A"): count, ("resnet", "B"): count + 2752}


@pytest.mark.parametrize(("n", "count"), MULTIPLICATIONS.items())
def test_multiplications_of_one_image(n, count):
    """They depend on the strides: the maps have 32, 16 and 8 pixels a side."""
    model = on_meta("resnet", n)
    seen = []

    def note(module: nn.Module, _: object, y: Tensor) -> None:
        seen.append(y[0].numel() * module.weight[0].numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(note)
    model(torch.zeros(1, 3, 32, 32, device="meta"))
    assert len(seen) == 6 * n + 2
    assert round(sum(seen) / 10_000) == count


def test_shortcut_subsamples_and_appends_zero_channels():
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    y = ZeroPadShortcut(16, 32, 2)(x)
    assert torch.equal(y, shortcut_a(x, 32, 2))
    assert not y[:, 16:].any()
    assert not list(ZeroPadShortcut(16, 32, 2).parameters())


@pytest.mark.parametrize(("net", "shortcut"), KINDS)
@pytest.mark.parametrize("stride", [1, 2])
def test_block_adds_before_its_second_relu(net, shortcut, stride):
    """Figure 2: relu(F(x) + shortcut); a plain block is relu(F(x)); nothing is added after the ReLU."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    block = BasicBlock(Architecture(net, 1, shortcut), 4, 4 * stride, stride)
    randomize(block)
    x = torch.randn(3, 4, 6, 6, generator=generator, dtype=torch.float64)
    state = block.state_dict()
    y = normalized(F.conv2d(x, state["conv1.weight"], stride=stride, padding=1), state, "bn1").clamp(min=0)
    y = normalized(F.conv2d(y, state["conv2.weight"], padding=1), state, "bn2")
    if net == "plain":
        carried = torch.zeros_like(y)
    elif stride == 1:
        carried = x
    elif shortcut == "A":
        carried = shortcut_a(x, 8, 2)
    else:
        carried = normalized(F.conv2d(x, state["downsample.0.weight"], stride=2), state, "downsample.1")
    with torch.no_grad():
        torch.testing.assert_close(block(x), (y + carried).clamp(min=0))
        assert net == "plain" or not torch.allclose(block(x), y.clamp(min=0) + carried)


@pytest.mark.parametrize(("net", "shortcut"), KINDS)
def test_network_equals_the_paper_written_out(net, shortcut):
    generator = torch.Generator().manual_seed(0)
    model = randomize(seeded(net, 2, shortcut))
    model.set_normalization(*torch.rand(2, 3, 1, 1, generator=generator, dtype=torch.float64).add(0.5))
    x = torch.rand(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x, model.state_dict(), net, 2, shortcut))


def test_normalization_is_part_of_the_network():
    """Per pixel and per channel."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 32, 32, generator=generator)
    mean = torch.rand(3, 32, 32, generator=generator)
    plain, own = seeded("resnet", 1).eval(), seeded("resnet", 1).eval()
    own.set_normalization(mean, torch.ones(3, 1, 1))
    assert torch.equal(own(x), plain(x - mean))
    channel_mean, channel_std = torch.rand(2, 3, 1, 1, generator=generator).add(0.1)
    own.set_normalization(channel_mean, channel_std)
    assert torch.equal(own(x), plain((x - channel_mean) / channel_std))
    assert torch.equal(own.forward_features(x), own.features(own.normalize(x)))
    assert not torch.equal(own.forward_features(x), own.features(x))


@pytest.mark.parametrize(("net", "shortcut"), KINDS)
def test_only_what_has_a_shortcut_has_one(net, shortcut):
    """Two in a residual network, where the width changes; the others are the identity. None in a plain one."""
    changed = [name for name, module in on_meta(net, 3, shortcut).named_modules() if name.endswith("downsample")]
    assert changed == (["layer2.0.downsample", "layer3.0.downsample"] if net == "resnet" else [])


def test_keys_are_torchvisions_and_the_normalization():
    """For a network with torchvision's block, the same names within the three stages that both have."""
    from torchvision.models import resnet18

    with torch.device("meta"):
        theirs = {name for name in resnet18().state_dict() if not name.startswith("layer4")}
    assert set(on_meta("resnet", 2, "B").state_dict()) == theirs | {"mean", "std"}


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_batch_norm_has_torchs_bits_on_a_cpu(dtype, layout, training):
    """Output, statistics, counter and gradients; the parameters are fp32 whatever the input is."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 16, 9, 9, generator=generator).to(dtype).contiguous(memory_format=layout)
    direction = torch.randn(8, 16, 9, 9, generator=generator).to(dtype).contiguous(memory_format=layout)
    seen = []
    for kind in (BatchNorm, nn.BatchNorm2d):
        norm = kind(16)
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.copy_(torch.linspace(0.5, 1.5, 16))
        norm.train(training)
        for _ in range(2):
            given = x.clone().requires_grad_()
            y = norm(given)
            y.backward(direction)
        assert y.is_contiguous(memory_format=layout)
        seen.append([y, given.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()])
        assert norm.num_batches_tracked == (2 if training else 0)
    assert all(ours.dtype == theirs.dtype and torch.equal(ours, theirs) for ours, theirs in zip(*seen, strict=True))


def test_batch_norm_without_a_counter_still_gathers_statistics():
    norm = BatchNorm(2)
    norm.num_batches_tracked = None
    norm(torch.full((2, 2, 4, 4), 10.0))
    assert norm.running_mean.tolist() == [1.0, 1.0]  # a tenth of the way from 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_batch_norm_is_that_one(kind):
    norms = [module for module in on_meta(kind[0], 2, kind[1]).modules() if isinstance(module, nn.BatchNorm2d)]
    assert {type(norm) for norm in norms} == {BatchNorm}


REFUSED = [
    torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
    torch.zeros(2, 1, 32, 32),
    torch.zeros(2, 3, 1, 1),
    torch.zeros(2, 32, 32, 3),
    torch.zeros(3, 32, 32),
]


@pytest.mark.parametrize("images", REFUSED, ids=lambda images: f"{images.dtype} {list(images.shape)}")
def test_what_would_be_broadcast_or_rescaled_is_refused(images):
    model = seeded("resnet", 1).eval()
    for take in (model, model.forward_features):
        with pytest.raises(
            ValueError, match=r"takes images of shape \(N, 3, 32, 32\), floating point in \[0, 1\]; these "
        ):
            take(images)


def test_no_images_give_no_logits():
    assert seeded("resnet", 1).eval()(torch.zeros(0, 3, 32, 32)).shape == (0, 10)


def test_a_graph_of_the_network_still_refuses_bytes():
    graph = torch.fx.symbolic_trace(seeded("resnet", 1).eval())
    with pytest.raises(ValueError, match="takes images of shape"):
        graph(REFUSED[0])


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_compiled_network_trains_as_the_eager_one(training):
    """The kernel changes its statistics in place, which its signature does not say."""
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen = []
    for compile_ in (lambda model: torch.compile(model, backend="aot_eager", fullgraph=True), lambda model: model):
        model = seeded("resnet", 1, "B").train(training)
        y = compile_(model)(x)
        y.square().sum().backward()
        seen.append([y, *model.buffers(), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*seen)


@pytest.mark.filterwarnings("ignore:.torch.jit", "error::torch.jit.TracerWarning")
def test_traced_network_takes_any_number_of_images():
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = seeded("plain", 1).eval()
    traced = torch.jit.trace(model, x[:2])
    torch.testing.assert_close(traced(x), model(x))
