"""The paper's training protocol (section 4.2): what defines a run, and its learning rates."""

import hashlib
import json
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from resnet_cifar.params import Study


@dataclass(frozen=True)
class Recipe:
    """All parameters that decide the bytes of one cell's weights and history.

    A field that is added later has a default, under which everything trained before it was trained: as long as it has
    that value, it stands in no digest.

    Parameters
    ----------
    net, n, seed : str, int, int
        The cell: resnet or plain, depth 6n+2.
    shortcut : str
        A or B (section 3.3).
    normalize : str
        pixel_mean or channel.
    iterations, batch_size : int
        Length of the run and of a batch.
    lr : float
        The learning rate, multiplied by ``gamma`` after each of ``milestones`` iterations.
    milestones : tuple of int
    gamma : float
    warmup_iterations : int
        The first iterations, which have the rate ``warmup_lr``; 0 for most networks.
    warmup_lr : float
    momentum, weight_decay : float
        Of SGD.
    precision : str
        fp32, bf16 or fp16: of convolutions and activations.
    eval_every : int
        Iterations between two points of the curve.
    initialization : str
        he, he_convolutions or pytorch, as :func:`~resnet_cifar.numerics.initialization.initialize` knows them.
    """

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
    eval_every: int
    initialization: str = "he"

    @property
    def digest(self) -> str:
        """SHA-256 of the parameters as sorted JSON, later ones only where they differ from their default."""
        values = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.default is MISSING or getattr(self, field.name) != field.default
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def next_evaluation(self, iteration: int) -> int:
        """The first point of the curve after ``iteration``: a multiple of ``eval_every``, or the end."""
        return min((iteration // self.eval_every + 1) * self.eval_every, self.iterations)


def resolve(study: "Study", net: str, n: int, seed: int) -> Recipe:
    """The recipe of one cell of a study; the warm-up is only for deep networks."""
    train = study.train
    warm = n >= train.warmup.min_n and train.warmup.iterations > 0
    return Recipe(
        net=net,
        n=n,
        seed=seed,
        shortcut=study.model.shortcut,
        normalize=study.data.normalize,
        iterations=train.iterations,
        batch_size=train.batch_size,
        lr=train.lr,
        milestones=tuple(train.milestones),
        gamma=train.gamma,
        warmup_iterations=train.warmup.iterations if warm else 0,
        warmup_lr=train.warmup.lr if warm else train.lr,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        precision=train.precision,
        eval_every=train.eval_every,
        initialization=study.model.initialization,
    )


def learning_rates(recipe: Recipe, start: int, count: int) -> np.ndarray:
    """The learning rates of ``count`` iterations after the first ``start``, float32 of shape (count,).

    Products of float64 numbers, rounded to float32 at the end: a power would be rounded by the system's math library.
    """
    return np.array([_rate(recipe, iteration) for iteration in range(start + 1, start + count + 1)], np.float32)


def _rate(recipe: Recipe, iteration: int) -> float:
    if iteration <= recipe.warmup_iterations:
        return recipe.warmup_lr
    rate = recipe.lr
    for milestone in recipe.milestones:
        if iteration > milestone:
            rate *= recipe.gamma
    return rate
