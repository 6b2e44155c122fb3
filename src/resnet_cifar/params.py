"""The parameters of a study: read from params.yaml, checked here and nowhere else."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from resnet_cifar.cells import SEEDS, Cell
from resnet_cifar.errors import InputError, in_one_line
from resnet_cifar.numerics.protocol import Recipe, resolve

TRAINING_IMAGES = 50_000
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Unit = Annotated[float, Field(ge=0, lt=1)]


class _Loader(yaml.SafeLoader):
    """With the numbers of YAML 1.2, which DVC reads into dvc.lock: in PyYAML's 1.1, 1e-4 is text and 010 is eight."""


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?[0-9][0-9_]*$"), list("+-0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"[-+]?((\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"),
    list("+-.0123456789"),
)
_Loader.add_constructor(_INT, lambda _, node: int(node.value.replace("_", "")))


def as_list(value: Any) -> list[Any]:
    """One value, a sequence, or text with commas, as a list: ``9``, ``[3, 9]`` and ``"3,9"`` are all accepted."""
    if isinstance(value, str):
        try:
            return [yaml.load(part, _Loader) for part in value.split(",")]
        except yaml.YAMLError:  # of which pydantic makes no sentence
            raise ValueError(f"{value!r} should be a value, or several with commas between them") from None
    return list(value) if hasattr(value, "__iter__") else [value]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Model(_Section):
    """The networks."""

    net: Any = Field(description="resnet, plain, or both")
    n: Any = Field(description="depth 6n+2: 3, 5, 7, 9 for ResNet-20, 32, 44, 56")
    shortcut: Literal["A", "B"] = Field(
        description="A: subsample, append zero channels; B: 1x1 convolution where the shape changes"
    )
    initialization: Literal["he", "he_convolutions", "pytorch"] = Field(
        default="he",
        description="he; pytorch: its defaults, with a sixth of the variance; he_convolutions: these in the classifier",
    )


class Data(_Section):
    """The images."""

    validation: NonNegative = Field(description="training images held out; 5000 is the paper's 45k/5k split")
    normalize: Literal["pixel_mean", "channel"] = Field(
        description="pixel_mean: subtract the mean of each pixel; channel: standardise each channel"
    )


class Warmup(_Section):
    """The lower rate at the start for deep networks (section 4.2: n = 18, 0.01 for about 400 iterations)."""

    min_n: Positive = Field(description="from this n on")
    iterations: NonNegative = Field(
        description="so many at the rate below; the paper waits for a training error of 80%"
    )
    lr: Rate = Field(description="the rate meanwhile")


class Train(_Section):
    """The protocol."""

    seeds: Any = Field(description="one run of each network for each")
    iterations: Positive = Field(description="SGD steps")
    batch_size: Annotated[int, Field(ge=2)] = Field(description="images a step")
    lr: Rate = Field(description="learning rate")
    milestones: list[Positive] = Field(description="iterations after which lr is multiplied by gamma")
    gamma: Rate = Field(description="what lr is multiplied by")
    warmup: Warmup
    momentum: Unit = Field(description="PyTorch's: the rate stands outside the velocity")
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(description="on every parameter")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        description="of convolutions and activations; weights and statistics are fp32"
    )
    eval_every: Positive = Field(description="iterations between two points of the curve")


class Cells(_Section):
    """The matrix of the train and evaluate stages."""

    net: list[Literal["resnet", "plain"]]
    n: list[Positive]
    seed: list[Seed]


class Study(_Section):
    """All parameters of a study, as params.yaml holds them; each field says what it means."""

    preset: Annotated[str, Field(min_length=1, description="the name of the file in conf/preset/")]
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
        if max(self.cells.n) >= train.warmup.min_n and train.warmup.iterations >= train.iterations:
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

    def recipe(self, cell: Cell) -> Recipe:
        """All parameters that decide the bytes of one cell."""
        return resolve(self, cell.net, cell.n, cell.seed)


def load(path: Path = Path("params.yaml")) -> Study:
    """Read and check the parameters.

    Raises
    ------
    InputError
        If the file is missing, is not YAML, or a value in it is not allowed; the sentence names the key.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): run this in the repository's root.") from None
    except (yaml.YAMLError, ValueError) as error:  # what is not UTF-8, or a number of thousands of digits
        raise InputError(f"{path} is not YAML: {in_one_line(error)}.") from None
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {_sentence(error)}.") from None


def _sentence(error: ValidationError) -> str:
    """The first problem in words that name the key as it is written with -S."""
    first = error.errors()[0]
    keys = [str(part) for part in first["loc"] if not isinstance(part, int)]
    key = ".".join(keys)
    key = {"cells.net": "model.net", "cells.n": "model.n", "cells.seed": "train.seeds"}.get(key, key)
    if key == "preset":
        return "preset should be a name: a file in conf/preset/ begins with `# @package _global_` and `preset: NAME`"
    if first["type"] == "extra_forbidden":
        return f"{key} is not a parameter; conf/ lists those that exist"
    if first["type"] == "missing":
        return f"{key} is missing; conf/ lists the parameters"
    if not key:
        return first["msg"].removeprefix("Value error, ")
    wanted = first["msg"].removeprefix("Input should be ")
    return f"{key} is {first['input']!r}; it should be {wanted}"
