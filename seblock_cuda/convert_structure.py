"""Reads the forward of an unknown layer: is it one pooling, two pointwise layers, one product?

The forward is traced symbolically (torch.fx), so that all it does with its input is seen, and what
is not on the lists below refuses the layer. Which activation and gate it has is left to the numbers
(:mod:`seblock_cuda.convert_probe`), and so is the proof.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from seblock_cuda.convert_recipe import (
    POINTWISE,
    Refused,
    pointwise_width,
    projection_widths,
    rank_of,
)

_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_ELEMENTWISE = (
    *(nn.ReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.ReLU6, nn.Hardtanh),
    *(nn.Sigmoid, nn.Hardsigmoid, nn.Identity, nn.Flatten, nn.Unflatten),
)
_POOL_FUNCTIONS = {"mean", "sum"} | {
    f"{kind}_pool{n}d" for kind in ("avg", "adaptive_avg") for n in (1, 2, 3)
}
# every way to write a reshape, an activation, a gate or the product
_WORDS = """
    view reshape flatten squeeze unsqueeze expand expand_as view_as size dim getattr getitem
    contiguous relu sigmoid silu gelu hardswish leaky_relu hardsigmoid relu6 hardtanh clamp
    add iadd mul imul multiply div truediv
"""
_FUNCTIONS = {*_POOL_FUNCTIONS, *_WORDS.split()}

_NAME = re.compile(
    r"SE(?![a-z])|[Ss]queeze_?(And_?)?(and_?)?[Ee]xcit|^Se(Module|Block|Layer)|^ESE?"
)

# machinery of nn.Module that a replacement would take away, if the class has its own
_MACHINERY = (
    *("__call__", "_call_impl", "_apply", "train", "state_dict", "load_state_dict"),
    *("_load_from_state_dict", "_save_to_state_dict", "get_extra_state", "set_extra_state"),
    *("named_parameters", "parameters", "__setstate__", "__getstate__", "__deepcopy__"),
)


def looks_like_se(module: nn.Module) -> bool:
    """Whether a module is small enough, and built or named so, that it may be an SE layer.

    It consists of pointwise layers, normalisations, activations and poolings only; with one or two
    pointwise layers C -> R -> C of R <= C, or with a name that says SE. A Sequential has no product
    of its own: it looks like one only if it is a gate.
    """
    if _is_sequential(module) and any(next(c.children(), None) for c in module.children()):
        return False
    points: list[tuple[int, int]] = []
    for leaf in module.modules():
        if next(leaf.children(), None) is not None:
            continue
        width = pointwise_width(leaf)
        if width is not None:
            points.append(width)
        elif next(leaf.parameters(), None) is not None and not _is_norm(leaf):
            return False
    if next(module.children(), None) is None or not 1 <= len(points) <= 4:
        return False
    if named_se(module):
        return True
    (c, r), (r_too, c_too) = points[0], points[-1]
    return len(points) <= 2 and (c, r) == (c_too, r_too) and r <= c


def _is_sequential(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward


def named_se(module: nn.Module) -> bool:
    """Whether the class's name says SE."""
    return bool(_NAME.search(type(module).__name__))


def has_pooling(module: nn.Module) -> bool:
    return any("Pool" in type(child).__name__ for child in module.modules())


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ or isinstance(module, nn.PReLU)


def check_untouched(module: nn.Module) -> None:
    """Raises Refused if something hangs on the layer that a replacement would lose."""
    for name, child in module.named_modules():
        where = f" on {name}" if name else ""
        hooks = (child._forward_hooks, child._forward_pre_hooks)
        if any(hooks) or child._backward_hooks or child._backward_pre_hooks:
            raise Refused(f"it has hooks{where}, which the op would not call")
        if parametrize.is_parametrized(child):
            raise Refused(f"it is parametrized{where}")
        if "forward" in child.__dict__:
            raise Refused(f"its forward was replaced{where or ' on the instance'}")
        for parameter_name, parameter in child._parameters.items():
            if parameter is not None and type(parameter) is not nn.Parameter:
                kind = type(parameter).__name__
                raise Refused(f"{parameter_name}{where} is a {kind}: sharded, quantised or lazy")
    if isinstance(module, torch.jit.ScriptModule):
        raise Refused("it is a ScriptModule")
    own = [name for name in _MACHINERY if _overrides(type(module), name)]
    if own:
        raise Refused(f"its class has its own {', '.join(own)}")
    arguments = list(inspect.signature(module.forward).parameters.values())
    if len(arguments) != 1 or arguments[0].kind == inspect.Parameter.VAR_KEYWORD:
        names = ", ".join(str(argument) for argument in arguments)
        raise Refused(f"its forward takes ({names}), not one tensor")


def _overrides(kind: type, name: str) -> bool:
    return getattr(kind, name, None) is not getattr(nn.Module, name, None)


def read_structure(module: nn.Module) -> tuple[list[tuple[str, ...]], tuple[int, ...]]:
    """The paths of the projections in the order in which they run, and the ranks to try.

    Args:
        module: a copy: a forward that keeps something writes it there.

    Raises:
        Refused: the forward is not that of an SE layer, or cannot be read.
    """
    for name, _ in module.named_buffers():
        raise Refused(f"it has a buffer ({name}): its result may depend on more than its input")
    before = _attributes(module)
    try:
        graph = fx.Tracer().trace(module)
    except Exception as error:
        raise Refused(f"its forward cannot be read: {_one_line(error)}") from None
    if _attributes(module) != before:
        raise Refused("its forward changes the module's own attributes")
    children = dict(module.named_modules())
    paths: list[tuple[str, ...]] = []
    pools = products = 0
    for node in graph.nodes:
        if node.op == "get_attr":
            raise Refused(f"its forward uses {node.target} directly")
        if node.op == "call_module":
            child = children[node.target]
            if isinstance(child, POINTWISE):
                paths.append(tuple(node.target.split(".")))
            elif type(child) not in (*_POOLS, *_ELEMENTWISE):
                raise Refused(f"a {type(child).__name__} ({node.target}) takes part")
            pools += type(child) in _POOLS
        elif node.op in ("call_function", "call_method"):
            name = node.target if isinstance(node.target, str) else node.target.__name__
            if name.rstrip("_") not in _FUNCTIONS:
                raise Refused(f"its forward uses {name}")
            pools += name in _POOL_FUNCTIONS
            products += _is_product(node)
    if not pools:
        raise Refused("there is no pooling over space")
    if not products:
        raise Refused("it computes a gate only: the product is elsewhere")
    if len(paths) not in (1, 2):
        raise Refused(f"it runs {len(paths)} pointwise layers, not two (or one, of C to C)")
    projections = [children[".".join(path)] for path in paths]
    projection_widths(projections)
    rank = rank_of(module, projections)
    conv = any(type(layer) is not nn.Linear for layer in projections)
    return paths, (rank,) if rank and conv else (3, 4, 5)


def _is_product(node: fx.Node) -> bool:
    """A product of two tensors, as far as a trace knows."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.rstrip("_") in ("mul", "imul", "multiply") and all(
        isinstance(argument, fx.Node) for argument in node.args
    )


def _attributes(module: nn.Module) -> list[dict[str, Any]]:
    """Every attribute by identity, containers by length too."""

    def mark(value: Any) -> Any:
        return id(value), len(value) if isinstance(value, (list, dict, set, tuple)) else None

    return [
        {name: mark(value) for name, value in child.__dict__.items()} for child in module.modules()
    ]


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:100] if lines else ''}"
