"""The parameters of a study: read from params.yaml, checked here and nowhere else."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from resnet_cifar.cells import Cell
from resnet_cifar.errors import InputError

TRAINING_IMAGES = 50_000
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Unit = Annotated[float, Field(ge=0, lt=1)]


def as_list(value: Any) -> list[Any]:
    """One value, a sequence, or text with commas, as a list: ``9``, ``[3, 9]`` and ``"3,9"`` are all accepted."""
    if isinstance(value, str):
        return [yaml.safe_load(part) for part in value.split(",")]
    return list(value) if hasattr(value, "__iter__") else [value]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Model(_Section):
    net: Any
    n: Any
    shortcut: Literal["A", "B"]


class Data(_Section):
    validation: NonNegative
    normalize: Literal["pixel_mean", "channel"]


class Warmup(_Section):
    """The lower rate at the start for deep networks (section 4.2: n = 18, 0.01 for about 400 iterations)."""

    min_n: Positive
    iterations: NonNegative
    lr: Rate


class Train(_Section):
    seeds: Any
    iterations: Positive
    batch_size: Annotated[int, Field(ge=2)]
    lr: Rate
    milestones: list[Positive]
    gamma: Rate
    warmup: Warmup
    momentum: Unit
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    precision: Literal["fp32", "bf16", "fp16"]
    eval_every: Positive


class Cells(_Section):
    net: list[Literal["resnet", "plain"]]
    n: list[Positive]
    seed: list[Seed]


class Params(_Section):
    """All parameters; see conf/ for what each one means."""

    preset: Annotated[str, Field(min_length=1)]
    model: Model
    data: Data
    train: Train
    cells: Cells

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        origin = {"net": "model.net", "n": "model.n", "seed": "train.seeds"}
        given = {"net": self.model.net, "n": self.model.n, "seed": self.train.seeds}
        for key, name in origin.items():
            values = getattr(self.cells, key)
            if as_list(given[key]) != values:
                raise ValueError(
                    f"cells.{key} is {values} but {name} is {given[key]}: set it with `dvc exp run -S {name}=…`, "
                    "which writes both, or edit both"
                )
            if not values:
                raise ValueError(f"{name}: the list is empty; it needs at least one value")
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: {values} names a value twice; each may stand there once")
        train = self.train
        if train.milestones != sorted(set(train.milestones)):
            raise ValueError(f"train.milestones: {train.milestones} must rise from each value to the next")
        if train.milestones and train.milestones[-1] >= train.iterations:
            raise ValueError(
                f"train.milestones: {train.milestones[-1]} is past the end; "
                f"each must be below train.iterations, {train.iterations}"
            )
        if train.warmup.iterations >= train.iterations:
            raise ValueError(
                f"train.warmup.iterations: {train.warmup.iterations} is past the end; "
                f"it must be below train.iterations, {train.iterations}"
            )
        if self.data.validation >= TRAINING_IMAGES:
            raise ValueError(
                f"data.validation: {self.data.validation} leaves no training image; it must be below {TRAINING_IMAGES}"
            )
        self.check_batch(TRAINING_IMAGES - self.data.validation)
        return self

    def check_batch(self, images: int) -> None:
        """Raise :class:`InputError` if a batch is larger than a training set of so many images."""
        if self.train.batch_size > images:
            raise InputError(
                f"train.batch_size: a batch of {self.train.batch_size} is larger than the training set; "
                f"it may have at most {images} images"
            )

    def list_cells(self) -> list[Cell]:
        """The cells of the study: every net, n and seed, in the order of the parameters."""
        return [Cell(net, n, seed) for net in self.cells.net for n in self.cells.n for seed in self.cells.seed]


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check the parameters.

    Raises
    ------
    InputError
        If the file is missing, is not YAML, or a value in it is not allowed; the sentence names the key.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): run this in the repository's root.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {_sentence(error)}.") from None


def _sentence(error: ValidationError) -> str:
    """The first problem in words that name the key as it is written with -S."""
    first = error.errors()[0]
    keys = [str(part) for part in first["loc"] if not isinstance(part, int)]
    key = ".".join(keys)
    key = {"cells.net": "model.net", "cells.n": "model.n", "cells.seed": "train.seeds"}.get(key, key)
    if first["type"] == "extra_forbidden":
        return f"{key} is not a parameter; conf/ lists those that exist"
    if first["type"] == "missing":
        return f"{key} is missing; conf/ lists the parameters"
    if not key:
        return first["msg"].removeprefix("Value error, ")
    wanted = first["msg"].removeprefix("Input should be ")
    return f"{key} is {first['input']!r}; it should be {wanted}"
