"""The networks registered with timm: ``import resnet_cifar.zoo``, then ``timm.create_model("resnet56_cifar10")``.

A network takes images in [0, 1]: its checkpoint carries the normalisation, so timm's own (``mean``, ``std``) is none.

``pretrained=True`` loads the network of seed 0, trained by the paper's protocol, which is part of the package. Seed 0
was settled on before it was trained: the best of the seeds would be chosen on the test images. A new head
(``num_classes=100``) or ``features_only=True`` may go with it. The checkpoint of another seed or study::

    timm.create_model("resnet20_cifar10", pretrained=True, pretrained_cfg_overlay={"file": path})

``checkpoint_path=path`` loads strictly too, but shows timm the tensors alone, and a plain network has those of the
residual one of its depth: there timm does not notice which of the two a file is of.

Examples
--------
>>> import timm, torch, resnet_cifar.zoo
>>> model = timm.create_model("resnet20_cifar10").eval()
>>> model(torch.rand(2, 3, 32, 32)).shape
torch.Size([2, 10])
"""

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from resnet_cifar.cells import Cell
from resnet_cifar.checkpoint import cell_of
from resnet_cifar.errors import InputError
from resnet_cifar.numerics.models import WIDTHS, Architecture, BatchNorm, CifarResNet, check_images

try:
    from timm.layers import create_classifier
    from timm.models import build_model_with_cfg, register_model, register_notrace_module
    from timm.models._features import feature_take_indices
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "timm":
        raise
    raise ModuleNotFoundError(
        "resnet_cifar.zoo needs timm: in a clone, `pip install '.[zoo]'` brings it.", name="timm"
    ) from None

register_notrace_module(BatchNorm)  # one node of a graph, as timm's users know batch normalisation


class TimmCifarResNet(CifarResNet):
    """A :class:`CifarResNet` with the methods that timm's users expect, and the same keys in its state.

    It starts as :meth:`init_weights` leaves it, so that ``torch.manual_seed`` decides its weights.

    Parameters
    ----------
    net, n, shortcut
        As in :class:`Architecture`.
    num_classes : int
        0 for pooled features instead of logits.
    in_chans : int
        Always 3; timm passes it.
    global_pool : str
        timm's name of a pooling; the paper's is ``avg``, and the empty string is none.
    drop_rate : float
        Dropout before the classifier; the paper has none.

    Raises
    ------
    InputError
        If ``in_chans`` is not 3, ``net`` not resnet or plain, or ``shortcut`` not A or B.

    Examples
    --------
    >>> import torch
    >>> TimmCifarResNet("resnet", n=3, num_classes=0)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 64])
    """

    def __init__(
        self,
        net: str,
        n: int,
        shortcut: str = "A",
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        if in_chans != 3:
            raise InputError(f"in_chans is {in_chans}; it must be 3, because the network normalises RGB images itself.")
        if net not in ("resnet", "plain"):
            raise InputError(f"net is {net!r}; it must be 'resnet' or 'plain'.")
        if shortcut not in ("A", "B"):
            raise InputError(f"shortcut is {shortcut!r}; it must be 'A' or 'B'.")
        super().__init__(Architecture(net, n, shortcut))
        self.drop_rate = drop_rate
        self.feature_info = [
            {"num_chs": width, "reduction": 2**stage, "module": f"layer{stage + 1}"}
            for stage, width in enumerate(WIDTHS)
        ]
        self.reset_classifier(num_classes, global_pool)
        self.init_weights()

    def init_weights(self) -> None:
        """He initialisation of the convolutions and the classifier (the paper's reference [13]), by torch's generator.

        Normal, of standard deviation sqrt(2 / fan-in); biases are 0. Batch normalisation is left at scale 1, shift 0.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def get_classifier(self) -> nn.Module:
        """The last layer: ``nn.Linear``, or ``nn.Identity`` where there are no classes."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for ``num_classes`` classes, none for 0; the pooling stays unless it is named."""
        self.num_classes = num_classes
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.fc.to(self.conv1.weight)  # its device and type

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Refuse what timm's training script asks for with ``--grad-checkpointing``.

        Raises
        ------
        InputError
            If ``enable``.
        """
        if enable:
            raise InputError("these networks have no gradient checkpointing, which saves memory that they do not need.")

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns by which timm groups parameters: the stem, then a group a block, or a stage if ``coarse``.

        The classifier, which none matches, is the last group, as timm's layer-wise learning rates want it.
        """
        return {"stem": r"^(?:conv1|bn1)\.", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last feature map to logits, or to what the classifier takes, shape (N, 64)."""
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,  # noqa: ARG002  timm passes it; there is no final normalisation to apply
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The feature maps of the stages that ``indices`` selects, and the last one computed, as timm defines it.

        Raises
        ------
        InputError
            If ``output_fmt`` is not NCHW.
        ValueError
            If the images are not of shape (N, 3, 32, 32), or integers.
        """
        if output_fmt != "NCHW":
            raise InputError(f"output_fmt is {output_fmt!r}; it must be 'NCHW'.")
        stages = (self.layer1, self.layer2, self.layer3)
        selected, last = feature_take_indices(len(stages), indices)
        intermediates = []
        x = self.stem(self.normalize(check_images(x)))
        for index, stage in enumerate(stages[: last + 1] if stop_early else stages):
            x = stage(x)
            if index in selected:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)


def _check(state: dict[str, Tensor], model: TimmCifarResNet) -> dict[str, Tensor]:
    """What timm does not look at: the network that a file names, and, under a new head, whether the rest is all there.

    A file of other origin, such as a fine-tuned network that timm saved, names none.
    """
    file, architecture = model.pretrained_cfg.get("file"), model.architecture
    cell = _cell_of(Path(file)) if file else None
    if cell and (cell.net, cell.n) != (architecture.net, architecture.n):
        wanted = Cell(architecture.net, architecture.n, cell.seed)
        raise InputError(f"{file} holds the weights of a {cell.network}, not of a {wanted.network}.")
    wrong = sorted(name for name in state.keys() ^ model.state_dict().keys() if not name.startswith("fc."))
    if wrong:
        raise InputError(f"the checkpoint is of another network: {wrong[0]} is missing or additional in it.")
    return state


def _cell_of(file: Path) -> Cell | None:
    try:
        return cell_of(file)
    except InputError:
        return None


def _create(name: str, pretrained: bool, net: str, n: int, **kwargs: Any) -> TimmCifarResNet:
    return build_model_with_cfg(
        TimmCifarResNet,
        name,
        pretrained,
        pretrained_filter_fn=_check,
        # the other wrappers rebuild the network from its modules, without normalisation and ReLU
        feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"},
        net=net,
        n=n,
        **kwargs,
    )


PRETRAINED = Path(__file__).with_name("pretrained")
_CFG = {
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "crop_pct": 1.0,
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "first_conv": "conv1",
    "classifier": "fc",
    "paper_ids": "arXiv:1512.03385",
    "paper_name": "Deep Residual Learning for Image Recognition",
}

default_cfgs = {
    "resnet20_cifar10": _CFG | {"file": str(PRETRAINED / "resnet-3-0.safetensors")},
    "resnet32_cifar10": _CFG | {"file": str(PRETRAINED / "resnet-5-0.safetensors")},
    "resnet44_cifar10": _CFG | {"file": str(PRETRAINED / "resnet-7-0.safetensors")},
    "resnet56_cifar10": _CFG | {"file": str(PRETRAINED / "resnet-9-0.safetensors")},
    "resnet110_cifar10": _CFG,
    "plain20_cifar10": _CFG,
    "plain32_cifar10": _CFG,
    "plain44_cifar10": _CFG,
    "plain56_cifar10": _CFG,
    "plain110_cifar10": _CFG,
}


@register_model
def resnet20_cifar10(pretrained: bool = False, **kwargs: Any) -> TimmCifarResNet:
    """ResNet-20 of He et al. 2015, section 4.2, n = 3: 0.27M parameters; the paper's test error is 8.75%."""
    return _create("resnet20_cifar10", pretrained, net="resnet", n=3, **kwargs)


@register_model
def resnet32_cifar10(pretrained: bool = False, **kwargs: Any) -> TimmCifarResNet:
    """ResNet-32 of He et al. 2015, section 4.2, n = 5: 0.46M parameters; the paper's test error is 7.51%."""
    return _create("resnet32_cifar10", pretrained, net="resnet", n=5, **kwargs)


@register_model
def resnet44_cifar10(pretrained: bool = False, **kwargs: Any) -> TimmCifarResNet:
    """ResNet-44 of He et al. 2015, section 4.2, n = 7: 0.66M parameters; the paper's test error is 7.17%."""
    return _create("resnet44_cifar10", pretrained, net="resnet", n=7, **kwargs)


@register_model
def resnet56_cifar10(pretrained: bool = False, **kwargs: Any) -> TimmCifarResNet:
    """ResNet-56 of He et al. 2015, section 4.2, n = 9: 0.85M parameters; the paper's test error is 6.97%."""
    return _create("resnet56_cifar10", pretrained, net="resnet", n=9, **kwargs)


@register_model
def resnet110_cifar10(pretrained: bool = False, **kwargs: Any) -> TimmCifarResNet:
    """ResNet-110 of He et al. 2015, section 4.2, n = 18: 1.7M parameters; the paper has 6.61 ± 0.16%. Not trained."""
    return _create("resnet110_cifar10", pretrained, net="resnet", n=18, **kwargs)


@register_model
def plain20_cifar10(pretrained: bool = False, **kwargs: Any) -> TimmCifarResNet:
    """Plain-20 of He et al. 2015, section 4.2, n = 3: ResNet-20 without its shortcuts."""
    return _create("plain20_cifar10", pretrained, net="plain", n=3, **kwargs)


@register_model
def plain32_cifar10(pretrained: bool = False, **kwargs: Any) -> TimmCifarResNet:
    """Plain-32 of He et al. 2015, section 4.2, n = 5: ResNet-32 without its shortcuts."""
    return _create("plain32_cifar10", pretrained, net="plain", n=5, **kwargs)


@register_model
def plain44_cifar10(pretrained: bool = False, **kwargs: Any) -> TimmCifarResNet:
    """Plain-44 of He et al. 2015, section 4.2, n = 7: ResNet-44 without its shortcuts."""
    return _create("plain44_cifar10", pretrained, net="plain", n=7, **kwargs)


@register_model
def plain56_cifar10(pretrained: bool = False, **kwargs: Any) -> TimmCifarResNet:
    """Plain-56 of He et al. 2015, section 4.2, n = 9: ResNet-56 without its shortcuts."""
    return _create("plain56_cifar10", pretrained, net="plain", n=9, **kwargs)


@register_model
def plain110_cifar10(pretrained: bool = False, **kwargs: Any) -> TimmCifarResNet:
    """Plain-110 of He et al. 2015, section 4.2, n = 18: ResNet-110 without its shortcuts."""
    return _create("plain110_cifar10", pretrained, net="plain", n=18, **kwargs)
