"""One network in training with torch: its tensors, one SGD step, one evaluation. Eager and CUDA graph run these."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_cifar.numerics import batches
from resnet_cifar.numerics.batches import Rows
from resnet_cifar.numerics.data import Dataset, pixel_values, scaled
from resnet_cifar.numerics.initialization import initialize
from resnet_cifar.numerics.logits import compute_logits
from resnet_cifar.numerics.models import Architecture, CifarResNet
from resnet_cifar.numerics.protocol import Recipe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOSS_SCALE = {"fp32": 1.0, "bf16": 1.0, "fp16": 1024.0}


class TorchNetwork:
    """All tensors of one network in training.

    The fp32 weights lie in one vector, ``weights``. Convolutions and the classifier compute with ``working``, the same
    vector in the precision in force (the very same if that is fp32); batch normalisation computes with the fp32 ones.

    Parameters
    ----------
    recipe : Recipe
        What to train.
    data : Dataset
        On the device already; several networks share it.
    precision : str
        The one in force: the recipe's, or fp32 where the device has no other.
    window : int
        The most iterations whose batches are on the device at once.
    """

    def __init__(self, recipe: Recipe, data: Dataset, precision: str, window: int) -> None:
        device = data.train.images.device
        self.recipe, self.data = recipe, data
        self.scale, self.dtype = LOSS_SCALE[precision], DTYPES[precision]
        self.model = CifarResNet(Architecture(recipe.net, recipe.n, recipe.shortcut))
        initialize(self.model, recipe.seed, recipe.initialization)
        self.model.to(device)
        self.model.set_normalization(*data.normalization(recipe.normalize))
        self.pixel_values = pixel_values().to(device)
        self._flatten()

        shape = (window, recipe.batch_size)
        self.index = torch.zeros(shape, dtype=torch.int32, device=device)
        self.top, self.left, self.flip = torch.zeros((3, *shape), dtype=torch.uint8, device=device)
        self.lr = torch.zeros(window, device=device)
        self.row = torch.zeros(1, dtype=torch.int64, device=device)
        self.rows = torch.arange(window, device=device)
        self.losses = torch.zeros(window, device=device)
        self.errors = torch.zeros(window, dtype=torch.int64, device=device)
        self.logits = {
            name: torch.zeros(len(split), self.model.num_classes, device=device)
            for name, split in data.held_out.items()
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
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.num_batches_tracked = None  # equals the iteration, which is counted once for all layers

    def _views(self, vector: Tensor) -> dict[str, Tensor]:
        """The parameters by name, as views of a vector of all of them."""
        pieces = vector.split([shape.numel() for shape in self.shapes.values()])
        return {name: _view(piece, shape) for piece, (name, shape) in zip(pieces, self.shapes.items(), strict=True)}

    def load(self, rows: Rows, rates: Tensor) -> None:
        """Put the batches and learning rates of the next iterations, at most ``window``, on the device."""
        for mine, given in zip((self.index, self.top, self.left, self.flip), rows, strict=True):
            mine[: len(given)].copy_(torch.from_numpy(given))
        self.lr[: len(rates)].copy_(rates)
        self.row.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that an iteration changes and a later one reads, by name: what a resumed run needs."""
        statistics = {f"statistics.{name}": buffer for name, buffer in self.model.named_buffers() if "running" in name}
        return {"weights": self.weights, "velocity": self.velocity, **statistics}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Copy what :meth:`tensors` gave, of this network or of an interrupted run of it, back in place."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        self.refresh()

    def refresh(self) -> None:
        """Round the weights to the precision in which they are used."""
        if self.working is not self.weights:
            self.working.copy_(self.weights)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and buffers by their names in a :class:`CifarResNet`, fp32, on the CPU, without its counters."""
        state = self._views(self.weights.cpu()) | {name: tensor.cpu() for name, tensor in self.model.named_buffers()}
        return {name: tensor.contiguous() for name, tensor in state.items()}

    def velocities(self) -> dict[str, Tensor]:
        """The velocity of each parameter, as :meth:`state_dict` gives weights."""
        return {name: tensor.contiguous() for name, tensor in self._views(self.velocity.cpu()).items()}


def _memory_order(parameter: Tensor) -> Tensor:
    """A convolution's weights with the channels last, as the kernels read them; others as they are."""
    return parameter.permute(0, 2, 3, 1) if parameter.dim() == 4 else parameter


def _view(piece: Tensor, shape: torch.Size) -> Tensor:
    """A piece of the vector as a parameter: the inverse of :func:`_memory_order`."""
    if len(shape) < 4:
        return piece.view(shape)
    outputs, inputs, height, width = shape
    return piece.view(outputs, height, width, inputs).permute(0, 3, 1, 2)


def step(network: TorchNetwork) -> None:
    """One iteration: gather, normalise, pad, crop, flip, forward, loss, backward, SGD, bookkeeping.

    Nothing in it waits for the device or depends on a value of it, so that it can be captured as a CUDA graph.
    """
    now, data, model = network.row, network.data.train, network.model
    index, top, left, flip = (
        tensor.index_select(0, now)[0] for tensor in (network.index, network.top, network.left, network.flip)
    )
    with torch.no_grad():
        images = model.normalize(scaled(data.images.index_select(0, index), network.pixel_values))
        images = batches.augment(images, top, left, flip).to(network.dtype)
        labels = data.labels.index_select(0, index)

    model.train()
    with torch.enable_grad():
        logits = model.forward_head(model.features(images)).float()
        loss = F.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(loss * network.scale, network.parameters)

    with torch.no_grad():
        for alike in network.alike:
            torch._foreach_copy_([network.gradients[i] for i in alike], [gradients[i] for i in alike])
        if network.scale != 1:
            network.gradient.div_(network.scale)
        sgd_(network, network.lr.index_select(0, now))
        network.refresh()
        # Not index_copy_, which sorts its one index where algorithms have to be deterministic.
        here = network.rows == now
        torch.where(here, loss.detach(), network.losses, out=network.losses)
        torch.where(here, count_errors(logits.detach(), labels), network.errors, out=network.errors)
        now.add_(1)


def sgd_(network: TorchNetwork, lr: Tensor) -> None:
    """One step of SGD with momentum, in place; weight decay on every parameter, no Nesterov.

    velocity = momentum * velocity + (gradient + weight_decay * weights); weights = weights - lr * velocity. The paper
    does not say whether its rate stands inside the velocity; at a constant rate it makes no difference.

    Parameters
    ----------
    network : TorchNetwork
        Its ``gradient`` is used up.
    lr : Tensor
        The learning rate, shape (1,), on the same device.
    """
    recipe = network.recipe
    network.gradient.add_(network.weights, alpha=recipe.weight_decay)
    network.velocity.mul_(recipe.momentum).add_(network.gradient)
    network.weights.addcmul_(network.velocity, lr, value=-1)


def count_errors(logits: Tensor, labels: Tensor) -> Tensor:
    """How many images' largest logit, the first of equal ones, is not their label's; no sum or maximum decides it.

    A GPU's argmax does not say which of equal values it gives.
    """
    own = logits.gather(1, labels[:, None])
    before = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & before)).any(1).sum()


@torch.no_grad()
def evaluate(network: TorchNetwork) -> None:
    """Compute the logits of the test (and validation) images, in the training's precision, into ``network.logits``."""
    network.model.eval()
    for name, split in network.data.held_out.items():
        compute_logits(network.model, split, network.pixel_values, network.dtype, network.logits[name])
