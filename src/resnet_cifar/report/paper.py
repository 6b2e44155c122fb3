"""The paper's protocol (He et al. 2015, section 4.2), and whether a study follows it."""

from collections.abc import Collection
from dataclasses import fields, replace

from resnet_cifar.cells import Cell
from resnet_cifar.numerics.protocol import Recipe
from resnet_cifar.params import Study

RECIPE = Recipe(
    net="resnet",
    n=3,
    seed=0,
    shortcut="A",
    normalize="pixel_mean",
    iterations=64_000,
    batch_size=128,
    lr=0.1,
    milestones=(32_000, 48_000),
    gamma=0.1,
    warmup_iterations=0,
    warmup_lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    precision="fp32",
    eval_every=1000,
)
WARMUP_MIN_N = 18
WARMUP_ITERATIONS = 400
WARMUP_LR = 0.01
NOT_ASKED = {"net", "n", "seed", "shortcut", "precision", "eval_every"}
"""Fields in which recipes may differ: which cell it is, where it is looked at, the shortcuts, for which the rows of
published.csv are chosen, and the precision that was asked for, because the one in force counts."""


def recipe(cell: Cell) -> Recipe:
    """How the paper trains a network.

    >>> recipe(Cell("resnet", 18, 0)).warmup_iterations
    400
    """
    own = replace(RECIPE, net=cell.net, n=cell.n, seed=cell.seed)
    if cell.n >= WARMUP_MIN_N:
        return replace(own, warmup_iterations=WARMUP_ITERATIONS, warmup_lr=WARMUP_LR)
    return own


def differences(study: Study, precisions: Collection[str]) -> list[str]:
    """The names of the parameters in which a study is not the paper's; whose errors stand beside the paper's has none.

    The paper trained in single precision and on all 50,000 images: its split of 45,000 and 5,000 fixed the schedule.

    Parameters
    ----------
    study : Study
        The parameters.
    precisions : collection of str
        Those in force when its cells were trained, as their records say.
    """
    found = dict.fromkeys(
        name for cell in study.list_cells() for name in differing(study.recipe(cell), recipe(cell), NOT_ASKED)
    )
    if study.data.validation:
        found["validation"] = None
    if set(precisions) != {"fp32"}:
        found["precision"] = None
    return list(found)


def differing(one: Recipe, other: Recipe, but: Collection[str]) -> list[str]:
    """The fields in which two recipes differ, ``but`` some."""
    if not (one.warmup_iterations and other.warmup_iterations):
        other = replace(other, warmup_lr=one.warmup_lr)  # one of them is of no iteration
    return [
        field.name
        for field in fields(Recipe)
        if field.name not in but and getattr(one, field.name) != getattr(other, field.name)
    ]
