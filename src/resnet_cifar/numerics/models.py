"""The paper's CIFAR networks, residual and plain (section 4.2), in plain torch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)
NUM_CLASSES = 10


@dataclass(frozen=True)
class Architecture:
    """Which of the paper's CIFAR networks: ``net`` resnet or plain, depth 6n+2, ``shortcut`` A or B (section 3.3)."""

    net: str
    n: int
    shortcut: str = "A"


class ZeroPadShortcut(nn.Module):
    """Shortcut A: every ``stride``-th pixel of each row and column, then zero channels appended. No parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.appended = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
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
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels, 1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.residual = architecture.net == "resnet"
        self.downsample: nn.Module | None = None
        if self.residual and (stride != 1 or in_channels != out_channels):
            if architecture.shortcut == "A":
                self.downsample = ZeroPadShortcut(in_channels, out_channels, stride)
            else:
                self.downsample = nn.Sequential(
                    nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
                )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.residual:
            y = y + (x if self.downsample is None else self.downsample(x))
        return F.relu(y)


class CifarResNet(nn.Module):
    """A CIFAR network of the paper: a 3x3 convolution, three stages of n blocks at 32, 16 and 8 pixels, a classifier.

    It takes images of shape (N, 3, 32, 32) in [0, 1], normalises them with its own buffers ``mean`` and ``std``
    and returns logits of shape (N, 10). Its other keys are those of torchvision's ResNet.

    Parameters
    ----------
    architecture : Architecture
        Which network.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.num_classes = NUM_CLASSES
        self.num_features = WIDTHS[-1]
        self.register_buffer("mean", torch.zeros(3, 32, 32))
        self.register_buffer("std", torch.ones(3, 1, 1))
        self.conv1 = _conv3x3(3, WIDTHS[0], 1)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
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
        """Keep what normalises an image: shapes that broadcast to (3, 32, 32) and (3, 1, 1)."""
        self.mean.copy_(mean.expand_as(self.mean))
        self.std.copy_(std)

    def normalize(self, x: Tensor) -> Tensor:
        """Images in [0, 1], shape (N, 3, 32, 32), as the first convolution takes them."""
        return (x - self.mean) / self.std

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised images to the last feature map, shape (N, 64, 8, 8)."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: Tensor) -> Tensor:
        """The last feature map to logits: global average pooling and the fully connected layer."""
        return self.fc(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(self.normalize(x)))


def initialize(model: nn.Module, generator: torch.Generator) -> None:
    """He initialisation of every convolution and of the classifier: normal, fan-in (the paper's reference [13]).

    Biases become 0; batch normalisation starts at scale 1 and shift 0, as torch makes it.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
