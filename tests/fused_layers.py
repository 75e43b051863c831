"""Every kind of fused layer beside the plain one of the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from seblock_cuda import EffectiveSE, SEBlock, SEResidual, SqueezeExcitation, convert_se_modules
from seblock_cuda.plain import PlainEffectiveSE, PlainSEResidual, PlainSqueezeExcitation
from seblock_cuda.reference import PlainSEBlock
from tests.models import Block, C, Convolutions, SELayer


class Shortcut(nn.Module):
    """Gives SEResidual its second input."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.se = kind(C, 1 / 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.se(x, x.flip(0))


class LeakyLayer(SELayer):
    def __init__(self) -> None:
        super().__init__(bias=True)
        self.fc[1] = nn.LeakyReLU()


class ReLUBlock(Block):
    def __init__(self) -> None:
        super().__init__(C)
        self.drop = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.drop(self.body(x)) + self.shortcut(x))


# name -> (plain, fused), with the same keys; None: the plain one, converted
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module] | None]] = {
    "SEBlock": (lambda: PlainSEBlock(C, 1 / 4), lambda: SEBlock(C, 1 / 4)),
    "SEResidual": (lambda: Shortcut(PlainSEResidual), lambda: Shortcut(SEResidual)),
    "SqueezeExcitation": (
        lambda: PlainSqueezeExcitation(C, 3, nn.SiLU),
        lambda: SqueezeExcitation(C, 3, nn.SiLU),
    ),
    "EffectiveSE": (lambda: PlainEffectiveSE(C), lambda: EffectiveSE(C)),
    "converted Linear": (LeakyLayer, None),
    "converted Conv2d": (Convolutions, None),
    "folded tail": (ReLUBlock, None),
}


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """The plain and the fused module of the same weights."""
    make_plain, make_fused = LAYERS[name]
    torch.manual_seed(3)
    plain = nn.Sequential(make_plain())
    if make_fused is None:
        fused = copy.deepcopy(plain)
        report = convert_se_modules(fused, fuse_residual=True)
        assert len(report.converted) == 1
        assert len(report.having("tail fused")) == (name == "folded tail")
    else:
        fused = nn.Sequential(make_fused())
        fused.load_state_dict(plain.state_dict())
    return plain, fused


def se_of(model: nn.Module) -> nn.Module:
    """The SE layer, or the plain one at its place."""
    return model[0].se if hasattr(model[0], "se") else model[0]


def projection(model: nn.Module) -> tuple[nn.Module, str]:
    """What holds the layer's first projection, and its name there."""
    for holder in se_of(model).modules():
        for name, child in holder.named_children():
            if isinstance(child, (nn.Conv2d, nn.Linear)):
                return holder, name
    raise AssertionError


def first(model: nn.Module) -> Any:
    holder, name = projection(model)
    return getattr(holder, name)
