"""The two pointwise layers of an SE layer, C to R to C."""

from __future__ import annotations

from torch import nn

from seblock_cuda.convert.report import Refused, full_name
from seblock_cuda.intact import POINTWISE

_CONV_RANK: dict[type, int] = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_POOL_RANK: dict[type, int] = dict(zip(POOLS, (3, 4, 5)))


def projection_widths(projections: list[nn.Module]) -> tuple[int, int]:
    """(C, R) of plain pointwise layers C -> R -> C, or of the one layer C -> C.

    Raises:
        Refused: they are something else.
    """
    widths = []
    for layer in projections:
        if type(layer) not in POINTWISE:
            raise Refused(f"a projection is a {full_name(layer)}, not a plain Conv or Linear")
        width = pointwise_width(layer)
        if width is None or not _is_plain(layer):
            raise Refused(f"a projection is not a plain pointwise one: {layer}")
        widths.append(width)
    (c, r), (r_too, c_too) = widths[0], widths[-1]
    if len(widths) == 1:
        r = r_too = c
    if (c, r) != (c_too, r_too):
        raise Refused(f"the projections are {widths}, not C to R to C")
    if r < 1:
        raise Refused("its squeeze has no channels")
    return c, r


def pointwise_width(layer: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a Linear or a 1x1 convolution; None for anything else."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and set(layer.kernel_size) == {1}:
        return layer.in_channels, layer.out_channels
    return None


def _is_plain(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        and set(layer.stride) == {1}
        and layer.groups == 1
        and (isinstance(layer.padding, str) or set(layer.padding) == {0})
    )


def rank_of(module: nn.Module, projections: list[nn.Module]) -> int | None:
    """How many dimensions the input has, by the class of a convolution or of the pooling."""
    for layer in projections:
        if type(layer) in _CONV_RANK:
            return _CONV_RANK[type(layer)]
    for child in module.modules():
        if type(child) in _POOL_RANK:
            return _POOL_RANK[type(child)]
    return None


def widths_within(module: nn.Module) -> list[tuple[int, int]]:
    """(in, out) of every pointwise layer within a module."""
    return [w for leaf in module.modules() if (w := pointwise_width(leaf)) is not None]


def has_pooling(module: nn.Module) -> bool:
    """Whether a module within it pools over all of space."""
    names = [type(child).__name__ for child in module.modules()]
    return any("Pool" in name and ("Adaptive" in name or "Global" in name) for name in names)


def is_sequential(module: nn.Module) -> bool:
    """Whether it has no forward of its own beyond calling its children in order."""
    return getattr(type(module), "forward", None) is nn.Sequential.forward
