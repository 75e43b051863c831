"""Reads the forward of an unknown layer: is it one pooling, two pointwise layers, one product?

The forward is traced symbolically (torch.fx), so that all it does with its input is seen, and what
is not on the lists below refuses the layer. Which activation and gate it has is left to the numbers
(:mod:`seblock_cuda.convert_probe`), and so is the proof.
"""

from __future__ import annotations

import copy
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


class NotSE(Exception):
    """Small and C -> R -> C, but nothing like an SE layer otherwise."""


def looks_like_se(module: nn.Module) -> bool:
    """Whether a module may be an SE layer by what it is built of.

    It has one or two pointwise layers, C -> R -> C in any order, and nothing else with parameters
    but normalisations. A Sequential has no product of its own: it may be a gate. Other
    containers have no forward at all.
    """
    if getattr(type(module), "forward", None) is nn.Module.forward:
        return False
    if _is_sequential(module) and any(next(c.children(), None) for c in module.children()):
        return False
    points = _widths(module)
    return len(points) in (1, 2) and points[0] == points[-1][::-1]


def is_evident(module: nn.Module) -> bool:
    """Whether a module that looks like SE is worth a word if it is left: it squeezes, or pools."""
    points = _widths(module)
    squeezes = len(points) == 2 and points[0][0] > points[0][1]
    return squeezes or _has_pooling(module) or named_se(module)


def _widths(module: nn.Module) -> list[tuple[int, int]]:
    return [w for leaf in module.modules() if (w := pointwise_width(leaf)) is not None]


def _has_pooling(module: nn.Module) -> bool:
    names = [type(child).__name__ for child in module.modules()]
    return any("Pool" in name and ("Adaptive" in name or "Global" in name) for name in names)


def is_part_of_block(module: nn.Module) -> bool:
    """Whether it holds more than the parts of an SE layer, so that one may be within it."""
    leaves = [leaf for leaf in module.modules() if next(leaf.children(), None) is None]
    if leaves == [module]:
        return True
    return any(
        pointwise_width(leaf) is None and not _is_norm(leaf)
        for leaf in leaves
        if next(leaf.parameters(), None) is not None
    )


def _is_sequential(module: nn.Module) -> bool:
    return getattr(type(module), "forward", None) is nn.Sequential.forward


def named_se(module: nn.Module) -> bool:
    """Whether the class's name says SE."""
    scripted = isinstance(module, torch.jit.ScriptModule)
    name: str = module.original_name if scripted else type(module).__name__  # type: ignore[assignment]
    return bool(_NAME.search(name))


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ or isinstance(module, nn.PReLU)


def check_untouched(module: nn.Module) -> None:
    """Raises Refused if something hangs on the layer that a replacement would lose."""
    for name, child in module.named_modules():
        where = f" on {name}" if name else ""
        if parametrize.is_parametrized(child):
            raise Refused(f"it is parametrized{where}")
        if "quantized" in type(child).__module__:
            raise Refused(f"it is quantised{where}")
        for parameter_name, parameter in child._parameters.items():
            if parameter is not None and type(parameter) is not nn.Parameter:
                kind = type(parameter).__name__
                raise Refused(f"{parameter_name}{where} is a {kind}: sharded, quantised or lazy")
        hooks = (child._forward_hooks, child._forward_pre_hooks)
        if any(hooks) or child._backward_hooks or child._backward_pre_hooks:
            raise Refused(f"it has hooks{where}, which the op would not call")
        if "forward" in child.__dict__:
            raise Refused(f"its forward was replaced{where or ' on the instance'}")
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

    Raises:
        Refused: the forward is not that of an SE layer, or cannot be read.
        NotSE: there is no pooling in it.
    """
    # a copy over the same tensors: a forward that keeps something keeps it there
    tensors = [*module.parameters(), *module.buffers()]
    own = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    before = _attributes(own)
    try:
        graph = fx.Tracer().trace(own)
    except Exception as error:
        raise Refused(f"its forward cannot be read: {_one_line(error)}") from None
    children = dict(own.named_modules())
    pools = [node for node in graph.nodes if _is_pool(node, children)]
    if not pools and not _has_pooling(module):
        raise NotSE("there is no pooling over space")
    for name, _ in own.named_buffers():
        raise Refused(f"it has a buffer ({name}): its result may depend on more than its input")
    if _attributes(own) != before:
        raise Refused("its forward changes the module's own attributes")
    for node in graph.nodes:
        _check_node(node, children)
    if not pools:
        raise Refused("there is no pooling over space")
    if not any(map(_is_product, graph.nodes)):
        raise Refused("it computes a gate only: the product is elsewhere")
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    calls = [target for target in calls if isinstance(children[target], POINTWISE)]
    if len(calls) not in (1, 2):
        raise Refused(f"it runs {len(calls)} pointwise layers, not two (or one, of C to C)")
    projections = [children[target] for target in calls]
    projection_widths(projections)
    rank = rank_of(own, projections)
    conv = any(type(layer) is not nn.Linear for layer in projections)
    paths = [tuple(target.split(".")) for target in calls]
    return paths, (rank,) if rank and conv else (3, 4, 5)


def _check_node(node: fx.Node, children: dict[str, nn.Module]) -> None:
    """Raises Refused if a step of a forward is none of an SE layer's."""
    if node.op == "get_attr":
        raise Refused(f"its forward uses {node.target} directly")
    if node.op == "call_module":
        child = children[str(node.target)]
        if not isinstance(child, POINTWISE) and type(child) not in (*_POOLS, *_ELEMENTWISE):
            raise Refused(f"a {type(child).__name__} ({node.target}) takes part")
    if node.op in ("call_function", "call_method") and _name(node) not in _FUNCTIONS:
        raise Refused(f"its forward uses {_name(node)}")


def _name(node: fx.Node) -> str:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.rstrip("_")


def _is_pool(node: fx.Node, children: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(children[str(node.target)]) in _POOLS
    return node.op in ("call_function", "call_method") and _name(node) in _POOL_FUNCTIONS


def _is_product(node: fx.Node) -> bool:
    """A product of two tensors, as far as a trace knows."""
    tensors = all(isinstance(argument, fx.Node) for argument in node.args)
    return tensors and _name(node) in ("mul", "imul", "multiply")


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
