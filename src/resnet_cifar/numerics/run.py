"""The way of one network from its first iteration to its last, and the curve that it leaves."""

import math
from collections.abc import Generator

import numpy as np
import torch
from torch import Tensor

from resnet_cifar.numerics import metrics
from resnet_cifar.numerics.batches import BatchStream
from resnet_cifar.numerics.data import Dataset
from resnet_cifar.numerics.engine import Engine, NonFiniteError, Turn
from resnet_cifar.numerics.protocol import Recipe, learning_rates
from resnet_cifar.numerics.weights import digest


class DivergedError(ArithmeticError):
    """The loss is not finite any more: ``what`` was not at ``iteration``."""

    def __init__(self, what: str, iteration: int) -> None:
        super().__init__(what, iteration)
        self.what, self.iteration = what, iteration


class Run:
    """One network on its way, with all that an interruption must not lose.

    Parameters
    ----------
    recipe : Recipe
        What to train.
    data : Dataset
        The same that the engine has; its splits are evaluated.
    engine : Engine
        What computes.

    Attributes
    ----------
    iteration : int
        How many are done.
    loss : float
        That of the last one, NaN before the first.
    whole : bool
        Whether the state can be saved now: it cannot in the middle of some iterations or of an evaluation.
    """

    def __init__(self, recipe: Recipe, data: Dataset, engine: Engine) -> None:
        self.recipe, self.engine = recipe, engine
        self.stream = BatchStream(recipe.seed, len(data.train), recipe.batch_size)
        self.labels = {name: split.labels.cpu().numpy() for name, split in data.held_out.items()}
        self.iteration = 0
        self.loss = math.nan
        self.whole = True
        self._losses: list[float] = []  # since the last point of the curve
        self._errors = 0
        columns = [f"{name}_{what}" for name in ("train", *self.labels) for what in ("loss", "error")]
        self._curve = [",".join(["iteration", "lr", *columns, "weights_sha256"])]

    @property
    def finished(self) -> bool:
        return self.iteration == self.recipe.iterations

    def train(self) -> Generator[Turn, None, None]:
        """Train to the last iteration, giving turns to others.

        Raises
        ------
        DivergedError
            If a loss is not finite.
        """
        while not self.finished:
            self.whole = False
            due = self.recipe.next_evaluation(self.iteration)
            count = min(self.engine.stretch, due - self.iteration)
            rates = learning_rates(self.recipe, self.iteration, count)
            try:
                outcome = yield from self.engine.steps(self.stream.rows(self.iteration, count), rates)
            except NonFiniteError as error:
                raise DivergedError("the loss", self.iteration + error.finite + 1) from None
            self.iteration += count
            self.loss = float(outcome.losses[-1])
            self._losses += outcome.losses.tolist()
            self._errors += int(outcome.errors.sum())
            if self.iteration == due:
                self._note((yield from self.engine.evaluate()), float(rates[-1]))
            self.whole = True
            yield Turn.WHOLE

    def _note(self, logits: dict[str, np.ndarray], rate: float) -> None:
        """Add a point to the curve: training loss and error are means over the iterations since the last one."""
        images = len(self._losses) * self.recipe.batch_size
        values = [math.fsum(self._losses) / len(self._losses), 100 * self._errors / images]
        for name, labels in self.labels.items():
            values += [metrics.cross_entropy(logits[name], labels), metrics.error(logits[name], labels)]
        if not all(map(math.isfinite, values)):  # the last update may have been the first to be infinite
            raise DivergedError("the evaluation's loss", self.iteration)
        numbers = [f"{value:.6f}" for value in values]
        self._curve.append(",".join([str(self.iteration), f"{rate:.6g}", *numbers, self._trace()]))
        self._losses, self._errors = [], 0

    def _trace(self) -> str:
        """Digest of the exact weights, statistics and velocities: what the next iteration starts from."""
        velocities = {f"velocity.{name}": tensor for name, tensor in self.engine.velocities().items()}
        return digest(self.engine.state_dict() | velocities)

    def history(self) -> str:
        """history.csv: a row a point of the curve. Losses in nats, errors in percent."""
        return "\n".join([*self._curve, ""])

    def state_dict(self) -> dict[str, Tensor]:
        """The network as a ``CifarResNet`` loads it, fp32, on the CPU."""
        state = self.engine.state_dict()
        counters = [name.replace("running_mean", "num_batches_tracked") for name in state if "running_mean" in name]
        return state | {name: torch.tensor(self.iteration) for name in counters}

    def saved(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """What a resumed run needs: tensors by name, and the rest as JSON can hold it. Only while ``whole``."""
        tensors = {f"engine.{name}": tensor.cpu() for name, tensor in self.engine.tensors().items()}
        tensors["losses"] = torch.tensor(self._losses, dtype=torch.float64)
        return tensors, {"iteration": self.iteration, "errors": self._errors, "curve": self._curve[1:]}

    def restore(self, tensors: dict[str, Tensor], rest: dict[str, object]) -> None:
        """Go on from what :meth:`saved` gave."""
        engine = {name: tensors[f"engine.{name}"] for name in self.engine.tensors()}
        losses, iteration, errors, curve = tensors["losses"].tolist(), rest["iteration"], rest["errors"], rest["curve"]
        self.engine.restore(engine)  # from here on nothing is missing
        self._losses, self.iteration, self._errors, self._curve[1:] = losses, iteration, errors, curve
