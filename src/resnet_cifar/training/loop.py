"""The training of one cell, from its first iteration, or where it was interrupted, to its files."""

import csv
import io
import math
from pathlib import Path

import torch

from resnet_cifar.checkpoint import save_weights
from resnet_cifar.training.engine import EagerEngine, GraphEngine
from resnet_cifar.training.step import TrainState


class DivergedError(ArithmeticError):
    """The loss is not finite any more."""


class Trainer:
    """Advances one network, piece by piece, so that several can take turns.

    Parameters
    ----------
    state : TrainState
        The network; it may have some iterations behind it.
    stream : torch.cuda.Stream, optional
        On CUDA, where its graph runs.
    """

    def __init__(self, state: TrainState, stream: "torch.cuda.Stream | None" = None) -> None:
        self.state = state
        self.done = self.checked = int(state.iteration)
        # A state that was saved at its end leaves a graph nothing to be captured from.
        self.engine = GraphEngine(state, stream) if stream and not self.finished else EagerEngine(state)
        self.loss = math.nan

    @property
    def finished(self) -> bool:
        return self.done == self.state.recipe.iterations

    def advance(self) -> None:
        """Run, or queue, a few iterations, and the evaluation if they end where one is due."""
        every, end = self.state.eval_every, self.state.recipe.iterations
        next_evaluation = min((self.done // every + 1) * every, end)
        count = min(self.engine.chunk, next_evaluation - self.done)
        self.engine.steps(count)
        self.done += count
        if self.done == next_evaluation:
            self.engine.evaluate()

    def settle(self) -> float:
        """Wait for what is queued and return the latest loss, NaN before the first.

        Raises
        ------
        DivergedError
            If a loss since the last call is not finite; the message names the iteration.
        """
        self.engine.wait()
        losses = self.state.losses[self.checked : self.done].cpu()
        if not losses.isfinite().all():
            iteration = self.checked + int((~losses.isfinite()).nonzero()[0]) + 1
            raise DivergedError(
                f"the loss is {losses[iteration - self.checked - 1].item()} at iteration {iteration:,}; "
                "a lower train.lr or train.precision=fp32 may help"
            )
        if len(losses):
            self.checked, self.loss = self.done, float(losses[-1])
        return self.loss

    def write_weights(self, path: Path, cell: dict[str, str | int]) -> None:
        """Write the last iterate: ``cell`` (net, n, seed) goes into its metadata with the digest of the parameters."""
        recipe = self.state.recipe
        metadata = {**cell, "shortcut": recipe.shortcut, "parameters_digest": recipe.digest}
        save_weights(path, self.state.state_dict(), metadata)

    def history(self) -> str:
        """The curve as CSV: a row an evaluation; training loss and error are means over the interval before it."""
        state = self.state
        losses, errors, rates = state.losses.cpu().double(), state.errors.cpu().double(), state.lr.cpu()
        evaluations = {name: tensor.cpu() for name, tensor in state.evaluations.items()}
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        columns = [f"{name}_{what}" for name in evaluations for what in ("loss", "error")]
        table.writerow(["iteration", "lr", "train_loss", "train_error", *columns])
        for row, start in enumerate(range(0, state.recipe.iterations, state.eval_every)):
            end = min(start + state.eval_every, state.recipe.iterations)
            train = [losses[start:end].mean(), 100 * errors[start:end].mean() / state.recipe.batch_size]
            others = [value for tensor in evaluations.values() for value in (tensor[row, 0], 100 * tensor[row, 1])]
            numbers = [f"{float(value):.6f}" for value in (*train, *others)]
            table.writerow([end, f"{float(rates[end - 1]):.6g}", *numbers])
        return text.getvalue()
