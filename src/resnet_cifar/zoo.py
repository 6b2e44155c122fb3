"""The networks registered with timm: ``import resnet_cifar.zoo``, then ``timm.create_model("resnet56_cifar10")``.

A network takes images in [0, 1]: its checkpoint carries the normalisation, so timm's own (``mean``, ``std``) is none.

With ``checkpoint_path=`` timm loads strictly, so the network must have the checkpoint's ten classes. But a plain
network has the same keys as the residual one of its depth, and timm does not look which of the two a file is of: its
metadata says so, which :func:`resnet_cifar.checkpoint.load_model` reads. A new head, or
``features_only=True``, on trained weights is what timm calls pretrained::

    timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": path}, num_classes=100)
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from resnet_cifar.errors import InputError
from resnet_cifar.models import WIDTHS, Architecture, CifarResNet, initialize

DEPTHS = (20, 32, 44, 56, 110)
NAMES = {f"{net}{depth}_cifar10": (net, (depth - 2) // 6) for net in ("resnet", "plain") for depth in DEPTHS}


class TimmCifarResNet(CifarResNet):
    """A :class:`CifarResNet` with the methods that timm's users expect, and the same keys in its state.

    Unlike there, ``forward_features`` takes images as ``forward`` does, and normalises them.

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
        If ``in_chans`` is not 3, or ``shortcut`` is not A or B.
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
        if shortcut not in ("A", "B"):
            raise InputError(f"shortcut is {shortcut!r}; it must be 'A' or 'B'.")
        super().__init__(Architecture(net, n, shortcut))
        self.drop_rate = drop_rate
        self.feature_info = [
            {"num_chs": width, "reduction": 2**stage, "module": f"layer{stage + 1}"}
            for stage, width in enumerate(WIDTHS)
        ]
        self.reset_classifier(num_classes, global_pool)
        initialize(self, torch.default_generator)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for ``num_classes`` classes, none for 0; the pooling stays unless it is named."""
        self.num_classes = num_classes
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.fc.to(self.conv1.weight)  # its device and type

    def forward_features(self, x: Tensor) -> Tensor:
        """Images in [0, 1] to the last feature map, shape (N, 64, 8, 8)."""
        return super().forward_features(self.normalize(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last feature map to logits, or to what the classifier takes, shape (N, 64)."""
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,  # noqa: ARG002  timm passes it; there is no final normalisation to apply
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The feature maps of the stages that ``indices`` selects, and the last one computed, as timm defines it."""
        if output_fmt != "NCHW":
            raise InputError(f"output_fmt is {output_fmt!r}; it must be 'NCHW'.")
        stages = (self.layer1, self.layer2, self.layer3)
        selected, last = feature_take_indices(len(stages), indices)
        intermediates = []
        x = F.relu(self.bn1(self.conv1(self.normalize(x))))
        for index, stage in enumerate(stages[: last + 1] if stop_early else stages):
            x = stage(x)
            if index in selected:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)


def _check_complete(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """timm loads non-strictly under a new head; the rest of the network must be there all the same."""
    wrong = sorted(name for name in state.keys() ^ model.state_dict().keys() if not name.startswith("fc."))
    if wrong:
        raise InputError(f"the checkpoint is of another network: {wrong[0]} is missing or additional in it.")
    return state


def _entrypoint(name: str, net: str, n: int) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(
            TimmCifarResNet,
            name,
            pretrained,
            pretrained_filter_fn=_check_complete,
            # the other wrappers rebuild the network from its modules, without normalisation and ReLU
            feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"},
            net=net,
            n=n,
            **kwargs,
        )

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"The {name} of He et al. 2015, section 4.2."
    return create


default_cfgs = generate_default_cfgs(
    {
        name: {
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
        for name in NAMES
    }
)

for _name, (_net, _n) in NAMES.items():
    globals()[_name] = register_model(_entrypoint(_name, _net, _n))
