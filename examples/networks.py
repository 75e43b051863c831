"""The networks that `--model` names, with fused or plain SE and a choice of the normalisation."""

from __future__ import annotations

import difflib

from irse50 import IRSE50
from problem import Problem
from se_resnet import PlainSEResidual, SEBottleneck, SEResNet
from torch import nn

from seblock_cuda import SEBlock, SEResidual, convert_se_modules
from seblock_cuda.reference import PlainSEBlock

NAMES = ("small", "seresnet18", "seresnet50", "irse50")
SE = {"fused": SEBlock, "plain": PlainSEBlock}
SE_WITH_SHORTCUT = {"fused": SEResidual, "plain": PlainSEResidual}
WIDTHS = (64, 128, 256, 512)
LARGE = 64  # images larger than this get ResNet's stem for photographs
GROUPS = 8


def build(name: str, *, se: str, outputs: int, channels: int, size: int) -> nn.Module:
    """Images [N, channels, size, size] to [N, outputs]: logits or an embedding.

    Raises:
        Problem: there is no such network, or it does not take such images.
    """
    if name == "irse50":
        if size % 16:
            raise Problem(f"--model irse50: --size must be a multiple of 16, got {size}")
        network = IRSE50(SE[se], size=size)
        return network if outputs == 512 else nn.Sequential(network, nn.Linear(512, outputs))
    if name.startswith("timm:"):
        return _timm(name.removeprefix("timm:"), se, num_classes=outputs, in_chans=channels)
    shapes = {
        "small": {},
        "seresnet18": {"widths": WIDTHS, "depths": (2, 2, 2, 2), "ratio": 1 / 16},
        "seresnet50": {
            "block": SEBottleneck,
            "widths": WIDTHS,
            "depths": (3, 4, 6, 3),
            "ratio": 1 / 16,
        },
    }
    return SEResNet(
        SE_WITH_SHORTCUT[se],
        in_channels=channels,
        num_classes=outputs,
        large_images=size > LARGE,
        **shapes[name],
    )


def _timm(name: str, se: str, **arguments: int) -> nn.Module:
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models())
        raise Problem(f"timm has no model {name}" + (f"; close: {', '.join(close)}" * bool(close)))
    model: nn.Module = timm.create_model(name, **arguments)
    if se == "fused" and not convert_se_modules(model).converted:
        raise Problem(f"timm:{name} has no SE layer to fuse; --se plain trains it as it is")
    return model


# ---- normalisation


def use_group_norm(model: nn.Module) -> None:
    """GroupNorm instead of BatchNorm: an image's result then does not depend on its batch.

    That makes several processes the same training as one. On GPUs SyncBatchNorm does so, too.
    """
    for name, child in model.named_children():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            groups = GROUPS if child.num_features % GROUPS == 0 else 1
            setattr(model, name, nn.GroupNorm(groups, child.num_features))
        else:
            use_group_norm(child)
