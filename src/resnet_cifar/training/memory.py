"""How many networks train at once on a GPU."""

import torch

from resnet_cifar.numerics.logits import BATCH
from resnet_cifar.numerics.protocol import Recipe
from resnet_cifar.settings import AT_ONCE
from resnet_cifar.training.engines import Computer

SHARE = 0.8  # of the free memory; the rest is for what cannot be foreseen
CONTEXT = 2**28


def fit_at_once(computer: Computer, recipes: list[Recipe], given: int | None) -> int:
    """How many train at once: one on a CPU; on a GPU what the environment says, else what memory takes, up to 10."""
    if computer.device.type == "cpu" or not recipes:
        return 1
    largest = max(footprint(recipe, computer.precision(recipe)) for recipe in recipes)
    return given or max(1, min(AT_ONCE, int(SHARE * _free(computer)) // largest))


def has_room(computer: Computer, recipe: Recipe) -> bool:
    """Whether a GPU has the memory for one more network: where it may run out, cuDNN takes algorithms of other bits."""
    torch.cuda.empty_cache()
    return _free(computer) >= footprint(recipe, computer.precision(recipe))


def footprint(recipe: Recipe, precision: str) -> int:
    """Bytes that a network takes in training, from above: the activations kept for the backward pass, twice."""
    activations = 2 * recipe.n * 3 * (16 * 32**2 + 32 * 16**2 + 64 * 8**2)
    size = 4 if precision == "fp32" else 2
    images = max(recipe.batch_size, BATCH["cuda"] // 4)  # an evaluation keeps two layers and not all
    return 2 * activations * size * images + CONTEXT


def _free(computer: Computer) -> int:
    free, _ = torch.cuda.mem_get_info(computer.device)
    return free
