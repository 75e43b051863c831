"""Which modules may be SE layers: by their class's name, or by what they are built of."""

from __future__ import annotations

import re

import torch
from torch import nn

from seblock_cuda.convert.known import KNOWN, NEVER
from seblock_cuda.convert.projections import (
    has_pooling,
    is_sequential,
    pointwise_width,
    widths_within,
)
from seblock_cuda.convert.report import Refused, full_name

_NAME = re.compile(
    r"SE(?![a-z])|[Ss]queeze_?(And_?)?(and_?)?[Ee]xcit|^Se(Module|Block|Layer)|^ESE?"
)


def may_be_se(module: nn.Module) -> bool:
    """Whether a module is to be read: its class says SE, or it is built like one.

    Raises:
        Refused: its class says SE, but there is nothing to read.
    """
    if not _is_evident(module) and not _looks_like_se(module):
        return False
    if isinstance(module, torch.jit.ScriptModule):
        raise Refused("it is a ScriptModule")
    within = (inner for inner in module.modules() if inner is not module)
    return not _is_part_of_block(module) and not any(map(_is_evident, within))


def is_known(module: nn.Module) -> bool:
    """Whether its very class is on the list of those that are known."""
    return full_name(module) in KNOWN or full_name(module) in NEVER


def is_named(module: nn.Module) -> bool:
    """Whether the class's name says SE."""
    scripted = isinstance(module, torch.jit.ScriptModule)
    name: str = module.original_name if scripted else type(module).__name__  # type: ignore[assignment]
    return bool(_NAME.search(name))


def is_worth_a_word(module: nn.Module) -> bool:
    """Whether a module that may be SE is reported if it is left: it squeezes, or pools."""
    points = widths_within(module)
    squeezes = len(points) == 2 and points[0][0] > points[0][1]
    return squeezes or has_pooling(module) or _is_evident(module)


def _is_evident(module: nn.Module) -> bool:
    return is_known(module) or is_named(module)


def _looks_like_se(module: nn.Module) -> bool:
    """Whether a module may be an SE layer by what it is built of.

    It has one or two pointwise layers, C -> R -> C in any order, and nothing else with parameters
    but normalisations. A Sequential has no product of its own: it may be a gate. Other
    containers have no forward at all.
    """
    if getattr(type(module), "forward", None) is nn.Module.forward:
        return False
    if is_sequential(module) and any(next(c.children(), None) for c in module.children()):
        return False
    points = widths_within(module)
    return len(points) in (1, 2) and points[0] == points[-1][::-1]


def _is_part_of_block(module: nn.Module) -> bool:
    """Whether it holds more than the parts of an SE layer, so that one may be within it."""
    leaves = [leaf for leaf in module.modules() if next(leaf.children(), None) is None]
    if leaves == [module]:
        return True
    return any(
        pointwise_width(leaf) is None and not _is_norm(leaf)
        for leaf in leaves
        if next(leaf.parameters(), None) is not None
    )


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ or isinstance(module, nn.PReLU)
