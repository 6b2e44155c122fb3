"""Train a residual network as any tutorial would, with nothing of this package: a second opinion on its protocol.

torchvision's transforms, a DataLoader, torch.optim.SGD, MultiStepLR and a network of its own, with the paper's rates
on a schedule of any length. Initial weights, batches and crops are torch's, borders are black and channels normalised,
so it agrees with a cell of the same schedule as another seed would. Printed are the columns of a history.csv.
ResNet-20 takes a third of a second an iteration on two cores of an Intel Xeon.
"""

import argparse
import sys
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

DATA = Path("data/cifar10.safetensors")
BATCH = 128
NORMALIZE = transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
AUGMENT = [transforms.RandomHorizontalFlip(), transforms.RandomCrop(32, padding=4)]


class Images(Dataset):
    """Images with their labels, as PIL images that are transformed when they are asked for."""

    def __init__(self, images: Tensor, labels: Tensor, augment: list[nn.Module]) -> None:
        self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.labels = labels.tolist()
        self.transform = transforms.Compose([*augment, transforms.ToTensor(), NORMALIZE])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


class Block(nn.Module):
    """Two convolutions and shortcut A, with half of its zero channels on either side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.grows = outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2 if self.grows else 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.grows:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.grows // 2, self.grows // 2))
        return F.relu(x + y)


def resnet(n: int) -> nn.Module:
    """The network of 6n+2 layers."""
    widths = [16] * (n + 1) + [32] * n + [64] * n
    blocks = [Block(inputs, outputs) for inputs, outputs in pairwise(widths)]
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    network = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return network.to(memory_format=torch.channels_last)


@torch.no_grad()
def evaluate(network: nn.Module, loader: DataLoader) -> tuple[float, float]:
    """Mean cross-entropy, in nats, and error, in percent, of the test images."""
    network.eval()
    logits = torch.cat([network(images.to(memory_format=torch.channels_last)) for images, _ in loader])
    network.train()
    labels = torch.tensor(loader.dataset.labels)
    return F.cross_entropy(logits, labels).item(), 100 * (logits.argmax(1) != labels).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=3, help="6n+2 layers (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=8000, help="the rate falls at 1/2 and 3/4 (default: 8000)")
    rows = "iterations between two rows (default: 500); a DataLoader draws, so another distance is another run"
    parser.add_argument("--every", type=int, default=500, help=rows)
    arguments = parser.parse_args()
    if min(arguments.n, arguments.iterations, arguments.every) < 1 or not 0 <= arguments.seed < 2**63:
        sys.exit("error: n, iterations and every should be 1 or more, the seed from 0 to 2^63 - 1.")
    if not DATA.is_file():
        sys.exit(f"error: {DATA} is not there; `make repro` makes it, and this runs in the root.")

    torch.manual_seed(arguments.seed)
    data = load_file(DATA)
    images = Images(data["train_images"], data["train_labels"], AUGMENT)
    train = DataLoader(images, batch_size=BATCH, shuffle=True, drop_last=True)
    test = DataLoader(Images(data["test_images"], data["test_labels"], []), batch_size=500)
    network = resnet(arguments.n)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    milestones = [arguments.iterations // 2, arguments.iterations * 3 // 4]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)

    print("iteration,lr,train_loss,train_error,test_loss,test_error", flush=True)
    iteration, losses, errors = 0, [], []
    while iteration < arguments.iterations:
        for inputs, labels in train:
            logits = network(inputs.to(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            iteration += 1
            losses.append(loss.item())
            errors.append(100 * (logits.argmax(1) != labels).double().mean().item())
            last = iteration == arguments.iterations
            if last or iteration % arguments.every == 0:
                rate = optimizer.param_groups[0]["lr"]
                row = [f"{value:.6f}" for value in (fmean(losses), fmean(errors), *evaluate(network, test))]
                print(",".join([str(iteration), f"{rate:.6g}", *row]), flush=True)
                losses, errors = [], []
            scheduler.step()
            if last:
                break


if __name__ == "__main__":
    main()
