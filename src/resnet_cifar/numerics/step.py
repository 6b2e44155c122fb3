"""One network in training: its tensors, one SGD step, one evaluation. Eager and CUDA graph run these same functions."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_cifar import batches
from resnet_cifar.dataset import Dataset, Split
from resnet_cifar.machine import DTYPES
from resnet_cifar.models import CifarResNet, initialize
from resnet_cifar.training.protocol import Recipe, learning_rates, sgd_

LOSS_SCALE = {"fp32": 1.0, "bf16": 1.0, "fp16": 1024.0}
EVAL_BATCH = {"cpu": 100, "cuda": 1000}  # a CPU is fastest when a batch stays in its cache


class TrainState:
    """All tensors of one network in training.

    The fp32 weights lie in one vector, ``weights``. Convolutions and the classifier compute with ``working``, the same
    vector in the recipe's precision (the very same if that is fp32); batch normalisation computes with the fp32 ones.

    Parameters
    ----------
    recipe : Recipe
        What to train.
    data : Dataset
        On the device already; several networks share it.
    eval_every : int
        Iterations between two evaluations.
    """

    def __init__(self, recipe: Recipe, data: Dataset, eval_every: int) -> None:
        device = data.train.images.device
        self.recipe, self.data, self.eval_every = recipe, data, eval_every
        self.scale = LOSS_SCALE[recipe.precision]
        self.dtype = DTYPES[recipe.precision]

        self.model = CifarResNet(recipe.architecture)
        initialize(self.model, torch.Generator().manual_seed(recipe.seed))
        self.model.to(device)
        self.model.set_normalization(*data.normalization(recipe.normalize))
        self._flatten()

        stream = batches.draw(recipe.seed, len(data.train), recipe.iterations, recipe.batch_size)
        self.stream = stream.to(device)
        self.lr = learning_rates(recipe).to(device)
        self.iteration = torch.zeros(1, dtype=torch.int64, device=device)
        self.iterations = torch.arange(recipe.iterations, device=device)
        self.losses = torch.zeros(recipe.iterations, dtype=torch.float32, device=device)
        self.errors = torch.zeros(recipe.iterations, dtype=torch.int64, device=device)
        self.splits = {"test": data.test} | ({"validation": data.validation} if data.validation else {})
        evaluations = -(-recipe.iterations // eval_every)
        self.evaluations = {
            name: torch.zeros(evaluations, 2, dtype=torch.float64, device=device) for name in self.splits
        }

    def _flatten(self) -> None:
        """Move the parameters into one vector and make the model's parameters views of it."""
        named = dict(self.model.named_parameters())
        self.shapes = {name: parameter.shape for name, parameter in named.items()}
        self.weights = torch.cat([_memory_order(parameter.detach()).reshape(-1) for parameter in named.values()])
        self.working = self.weights if self.dtype == torch.float32 else self.weights.to(self.dtype)
        self.velocity = torch.zeros_like(self.weights)
        self.gradient = torch.zeros_like(self.weights)
        exact, working = self._views(self.weights), self._views(self.working)
        for name in named:
            layer, _, attribute = name.rpartition(".")
            module = self.model.get_submodule(layer)
            view = exact[name] if isinstance(module, nn.BatchNorm2d) else working[name]
            setattr(module, attribute, nn.Parameter(view))
        self.parameters = list(self.model.parameters())
        self.gradients = list(self._views(self.gradient).values())
        # Gradients of one type are copied by one kernel, of several types by one kernel each.
        types = {parameter.dtype for parameter in self.parameters}
        self.alike = [
            [i for i, p in enumerate(self.parameters) if p.dtype == dtype] for dtype in sorted(types, key=str)
        ]
        self.norms = [name for name, module in self.model.named_modules() if isinstance(module, nn.BatchNorm2d)]
        for name in self.norms:
            # Equals the iteration; counted once for all layers.
            self.model.get_submodule(name).num_batches_tracked = None

    def _views(self, vector: Tensor) -> dict[str, Tensor]:
        """The parameters by name, as views of a vector of all of them."""
        pieces = vector.split([shape.numel() for shape in self.shapes.values()])
        return {name: _view(piece, shape) for piece, (name, shape) in zip(pieces, self.shapes.items(), strict=True)}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that training changes, by name: what a resumed run needs."""
        statistics = {f"statistics.{name}": buffer for name, buffer in self.model.named_buffers() if "running" in name}
        evaluations = {f"evaluations.{name}": tensor for name, tensor in self.evaluations.items()}
        return {
            "weights": self.weights,
            "velocity": self.velocity,
            "iteration": self.iteration,
            "losses": self.losses,
            "errors": self.errors,
            **statistics,
            **evaluations,
        }

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Copy what :meth:`tensors` gave, of this network or of an interrupted run of it, back in place."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        self._refresh()

    def _refresh(self) -> None:
        if self.working is not self.weights:
            self.working.copy_(self.weights)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights and statistics as a :class:`CifarResNet` loads them, fp32, on the CPU."""
        state = self._views(self.weights.cpu()) | {name: tensor.cpu() for name, tensor in self.model.named_buffers()}
        counter = self.iteration[0].cpu()
        state |= {f"{name}.num_batches_tracked": counter.clone() for name in self.norms}
        return {name: tensor.contiguous() for name, tensor in state.items()}


def _memory_order(parameter: Tensor) -> Tensor:
    """A convolution's weights with the channels last, as the kernels read them; others as they are."""
    return parameter.permute(0, 2, 3, 1) if parameter.dim() == 4 else parameter


def _view(piece: Tensor, shape: torch.Size) -> Tensor:
    """A piece of the vector as a parameter: the inverse of :func:`_memory_order`."""
    if len(shape) < 4:
        return piece.view(shape)
    outputs, inputs, height, width = shape
    return piece.view(outputs, height, width, inputs).permute(0, 3, 1, 2)


def step(state: TrainState) -> None:
    """One iteration: gather, normalise, pad, crop, flip, forward, loss, backward, SGD, bookkeeping.

    Nothing in it waits for the device or depends on a value of it, so that it can be captured as a CUDA graph.
    """
    now, data, model = state.iteration, state.data, state.model
    index, top, left, flip = (
        tensor.index_select(0, now)[0]
        for tensor in (state.stream.index, state.stream.top, state.stream.left, state.stream.flip)
    )
    with torch.no_grad():
        images = data.train.images.index_select(0, index).float().div_(255)
        images = batches.augment(model.normalize(images), top, left, flip).to(state.dtype)
        labels = data.train.labels.index_select(0, index)

    model.train()
    with torch.enable_grad():
        logits = model.forward_head(model.forward_features(images)).float()
        loss = F.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(loss * state.scale, state.parameters)

    with torch.no_grad():
        for alike in state.alike:
            torch._foreach_copy_([state.gradients[i] for i in alike], [gradients[i] for i in alike])
        if state.scale != 1:
            state.gradient.div_(state.scale)
        sgd_(state.weights, state.velocity, state.gradient, state.lr.index_select(0, now), state.recipe)
        state._refresh()
        # Not index_copy_, which sorts its one index where algorithms have to be deterministic.
        here = state.iterations == now
        torch.where(here, loss.detach(), state.losses, out=state.losses)
        torch.where(here, (logits.argmax(1) != labels).sum(), state.errors, out=state.errors)
        now.add_(1)


@torch.no_grad()
def evaluate(state: TrainState) -> None:
    """Note the loss and error of the present weights on the test (and validation) images in ``state.evaluations``.

    In the training's precision: it draws the curve. The reported error comes from the checkpoint, in fp32.
    """
    state.model.eval()
    row = (state.iteration + state.eval_every - 1) // state.eval_every - 1
    for name, split in state.splits.items():
        sums = torch.zeros(2, dtype=torch.float64, device=row.device)
        for images, labels in _chunks(split):
            images = state.model.normalize(images.float().div_(255)).contiguous(memory_format=torch.channels_last)
            logits = state.model.forward_head(state.model.forward_features(images.to(state.dtype))).float()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            sums += torch.stack([loss.double(), (logits.argmax(1) != labels).sum().double()])
        state.evaluations[name].index_copy_(0, row, (sums / len(split))[None])


def _chunks(split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    size = EVAL_BATCH[split.images.device.type]
    return zip(split.images.split(size), split.labels.split(size), strict=True)
