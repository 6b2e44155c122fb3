"""The paper's training protocol (section 4.2): what defines a run, its learning rates, its optimizer."""

import hashlib
import json
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from resnet_cifar.cells import Cell
from resnet_cifar.models import Architecture
from resnet_cifar.params import Params


@dataclass(frozen=True)
class Recipe:
    """All parameters that decide a cell's weights, with ``precision`` as it is in force and warm-up resolved for n."""

    net: str
    n: int
    seed: int
    shortcut: str
    normalize: str
    iterations: int
    batch_size: int
    lr: float
    milestones: tuple[int, ...]
    gamma: float
    warmup_iterations: int
    warmup_lr: float
    momentum: float
    weight_decay: float
    precision: str

    @property
    def architecture(self) -> Architecture:
        return Architecture(self.net, self.n, self.shortcut)

    @property
    def digest(self) -> str:
        """SHA-256 of the parameters as sorted JSON."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def recipe(params: Params, cell: Cell, precision: str) -> Recipe:
    """The parameters of one cell; ``precision`` is the one in force on the machine."""
    train = params.train
    warm = cell.n >= train.warmup.min_n and train.warmup.iterations > 0
    return Recipe(
        net=cell.net,
        n=cell.n,
        seed=cell.seed,
        shortcut=params.model.shortcut,
        normalize=params.data.normalize,
        iterations=train.iterations,
        batch_size=train.batch_size,
        lr=train.lr,
        milestones=tuple(train.milestones),
        gamma=train.gamma,
        warmup_iterations=train.warmup.iterations if warm else 0,
        warmup_lr=train.warmup.lr if warm else train.lr,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        precision=precision,
    )


def learning_rates(recipe: Recipe) -> Tensor:
    """The learning rate of each iteration, float32 of shape (iterations,); entry i is iteration i + 1.

    The warm-up rate for the first iterations, then ``lr``, multiplied by ``gamma`` after each milestone.
    """
    iteration = torch.arange(1, recipe.iterations + 1)
    passed = sum(((iteration > milestone).int() for milestone in recipe.milestones), torch.zeros_like(iteration))
    rates = recipe.lr * torch.tensor(recipe.gamma, dtype=torch.float64) ** passed
    rates[: recipe.warmup_iterations] = recipe.warmup_lr
    return rates.float()


def sgd_(weights: Tensor, velocity: Tensor, gradient: Tensor, lr: Tensor, recipe: Recipe) -> None:
    """One step of SGD with momentum, in place; weight decay on every parameter, no Nesterov.

    velocity = momentum * velocity + (gradient + weight_decay * weights); weights = weights - lr * velocity.

    Parameters
    ----------
    weights, velocity, gradient : Tensor
        All parameters of a network in one vector, float32; ``gradient`` is used up.
    lr : Tensor
        The learning rate, shape (1,), on the same device.
    """
    gradient.add_(weights, alpha=recipe.weight_decay)
    velocity.mul_(recipe.momentum).add_(gradient)
    weights.addcmul_(velocity, lr, value=-1)
