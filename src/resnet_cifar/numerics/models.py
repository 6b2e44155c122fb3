"""The paper's CIFAR networks, residual and plain (section 4.2), in plain torch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)
NUM_CLASSES = 10


@dataclass(frozen=True)
class Architecture:
    """Which of the paper's CIFAR networks.

    Parameters
    ----------
    net : str
        ``resnet`` or ``plain``.
    n : int
        Blocks in each of the three stages, at least 1; the depth is 6n+2 (section 4.2).
    shortcut : str
        ``A`` (identity and zero padding) or ``B`` (projection where the width changes), section 3.3. A plain network
        has none of either.
    """

    net: str
    n: int
    shortcut: str = "A"


class BatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` by torch's own kernel, on every device and in every precision.

    On a CPU that is the same kernel and the same bits. On CUDA torch would take cuDNN's, which stalls beside other
    streams. The input may have fewer bits than the parameters and statistics, which are fp32.

    >>> BatchNorm(16)(torch.ones(2, 16, 8, 8, dtype=torch.bfloat16)).dtype
    torch.bfloat16
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise maps of shape (N, C, H, W), each channel by its own mean and variance."""
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return torch.native_batch_norm(
            input, self.weight, self.bias, self.running_mean, self.running_var, self.training, self.momentum, self.eps
        )[0]


class ZeroPadShortcut(nn.Module):
    """Shortcut A (section 3.3): every ``stride``-th pixel of each row and column, then zero channels. No parameters.

    >>> ZeroPadShortcut(16, 32, stride=2)(torch.ones(1, 16, 8, 8)).sum((2, 3)).unique(return_counts=True)
    (tensor([ 0., 16.]), tensor([16, 16]))
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.appended = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Maps of shape (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.appended))


def _conv3x3(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each batch-normalised; what the shortcut carries is added before the second ReLU.

    Figure 2 and equation (1) of the paper; equation (2) where the shape changes. A plain block has no shortcut.
    """

    def __init__(self, architecture: Architecture, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = BatchNorm(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels, 1)
        self.bn2 = BatchNorm(out_channels)
        self.residual = architecture.net == "resnet"
        self.downsample: nn.Module | None = None
        if self.residual and (stride != 1 or in_channels != out_channels):
            if architecture.shortcut == "A":
                self.downsample = ZeroPadShortcut(in_channels, out_channels, stride)
            else:
                self.downsample = nn.Sequential(
                    nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), BatchNorm(out_channels)
                )

    def forward(self, x: Tensor) -> Tensor:
        """Maps of shape (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.residual:
            y = y + (x if self.downsample is None else self.downsample(x))
        return F.relu(y)


class CifarResNet(nn.Module):
    """A CIFAR network of the paper: a 3x3 convolution, three stages of n blocks at 32, 16 and 8 pixels, a classifier.

    It takes images of shape (N, 3, 32, 32) in [0, 1], normalises them with its own buffers ``mean`` and ``std``
    and returns logits of shape (N, 10). Its other keys are those of torchvision's ResNet. Its weights are torch's
    default ones until they are initialised or loaded.

    Parameters
    ----------
    architecture : Architecture
        Which network.

    Examples
    --------
    >>> model = CifarResNet(Architecture("resnet", n=3)).eval()
    >>> images = torch.rand(2, 3, 32, 32)
    >>> model(images).shape, model.forward_features(images).shape
    (torch.Size([2, 10]), torch.Size([2, 64, 8, 8]))
    >>> sum(parameter.numel() for parameter in model.parameters())  # Table 6: 0.27M
    269722
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.num_classes = NUM_CLASSES
        self.num_features = WIDTHS[-1]
        self.register_buffer("mean", torch.zeros(3, 32, 32))
        self.register_buffer("std", torch.ones(3, 1, 1))
        self.conv1 = _conv3x3(3, WIDTHS[0], 1)
        self.bn1 = BatchNorm(WIDTHS[0])
        channels = WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            blocks = []
            for index in range(architecture.n):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(BasicBlock(architecture, channels, width, stride))
                channels = width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, NUM_CLASSES)

    def set_normalization(self, mean: Tensor, std: Tensor) -> None:
        """Keep what normalises an image: shapes that broadcast to (3, 32, 32) and (3, 1, 1), for pixels in [0, 1]."""
        self.mean.copy_(mean.expand_as(self.mean))
        self.std.copy_(std)

    def normalize(self, x: Tensor) -> Tensor:
        """Images in [0, 1], shape (N, 3, 32, 32), as the first convolution takes them."""
        return (x - self.mean) / self.std

    def stem(self, normalized: Tensor) -> Tensor:
        """Normalised images, shape (N, 3, 32, 32), to what the first stage takes, shape (N, 16, 32, 32)."""
        return F.relu(self.bn1(self.conv1(normalized)))

    def features(self, normalized: Tensor) -> Tensor:
        """Normalised images, shape (N, 3, 32, 32), to the last feature map, shape (N, 64, 8, 8)."""
        return self.layer3(self.layer2(self.layer1(self.stem(normalized))))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images in [0, 1], shape (N, 3, 32, 32), to the last feature map, shape (N, 64, 8, 8).

        Raises
        ------
        ValueError
            If they are of another shape, or integers.
        """
        return self.features(self.normalize(check_images(x)))

    def forward_head(self, x: Tensor) -> Tensor:
        """The last feature map to logits, (N, 10): global average pooling and the fully connected layer."""
        return self.fc(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """Images in [0, 1], shape (N, 3, 32, 32), to logits, shape (N, 10).

        Raises
        ------
        ValueError
            If they are of another shape, or integers.
        """
        return self.forward_head(self.forward_features(x))


@torch.fx.wrap  # in a graph it is one node, because a symbol has no shape to look at
def check_images(x: Tensor) -> Tensor:
    """Return ``x`` if it is what a network takes: floating point of shape (N, 3, 32, 32).

    The normalisation would otherwise broadcast other shapes and take bytes for numbers in [0, 1].

    Raises
    ------
    ValueError
        If it is of another shape, or integers. The values are not looked at.
    """
    if not torch.jit.is_tracing() and not (x.is_floating_point() and x.dim() == 4 and list(x.shape[1:]) == [3, 32, 32]):
        raise ValueError(
            f"a network takes images of shape (N, 3, 32, 32), floating point in [0, 1]; "
            f"these have shape {list(x.shape)} and type {x.dtype}."
        )
    return x
