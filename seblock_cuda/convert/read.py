"""Reads a layer: what of it the op takes, and how the op runs it.

Known classes are looked up. The forward of any other is traced symbolically (torch.fx), so that all
it does with its input is seen, and what is not on the lists below refuses the layer: it has to be
one pooling, two pointwise layers, one product. Which activation and gate it has is left to the
numbers (:mod:`seblock_cuda.convert.prove`), and so is the proof.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize

from seblock_cuda.convert import prove
from seblock_cuda.convert.known import known_recipe
from seblock_cuda.convert.projections import POOLS, has_pooling, projection_widths, rank_of
from seblock_cuda.convert.recognise import is_known, is_named, is_worth_a_word
from seblock_cuda.convert.report import Refused, one_line
from seblock_cuda.fused import Recipe
from seblock_cuda.intact import POINTWISE, hooks_of

_ELEMENTWISE = (
    *(nn.ReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.ReLU6, nn.Hardtanh),
    *(nn.Sigmoid, nn.Hardsigmoid, nn.Identity, nn.Flatten, nn.Unflatten),
)
POOL_FUNCTIONS = {"mean", "sum"} | {
    f"{kind}_pool{n}d" for kind in ("avg", "adaptive_avg") for n in (1, 2, 3)
}
# every way to write a reshape, an activation, a gate or the product
_WORDS = """
    view reshape flatten squeeze unsqueeze expand expand_as view_as size dim getattr getitem
    contiguous relu sigmoid silu gelu hardswish leaky_relu hardsigmoid relu6 hardtanh clamp
    add iadd mul imul multiply div truediv
"""
_FUNCTIONS = {*POOL_FUNCTIONS, *_WORDS.split()}

# of nn.Module: a class that has its own may not be copied, or called, as others are
_MACHINERY = (
    *("__call__", "_call_impl", "__getattribute__", "__reduce__", "__reduce_ex__"),
    *("__getstate__", "__setstate__", "__copy__", "__deepcopy__"),
)


class NotSE(Exception):
    """Small and C -> R -> C, but nothing like an SE layer otherwise."""


def read_recipe(module: nn.Module) -> Recipe | None:
    """How the op runs a layer that may be SE; None if it is none after all.

    Raises:
        Refused: it is one, but the op cannot run it.
    """
    if is_known(module):
        return known_recipe(module)
    try:
        paths, ranks = _read_structure(module)
    except NotSE as reason:
        if is_named(module):
            raise Refused(str(reason)) from None
        return None
    except Refused:
        if is_worth_a_word(module):
            raise
        return None
    own = prove.own_copy(module)
    prove.spread_weights(own, paths)
    (activation, gate), ranks = prove.find_names(own, paths, ranks)
    return Recipe(paths[0] if len(paths) == 2 else "", paths[-1], activation, gate, ranks)


def check_untouched(module: nn.Module, *, hooks: bool = True) -> None:
    """Raises Refused if something hangs on the layer's parts that the op would ignore.

    Args:
        hooks: whether hooks on its children count.
    """
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
        if name and hooks and hooks_of(child):
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


def _read_structure(module: nn.Module) -> tuple[list[str], tuple[int, ...]]:
    """The paths of the projections in the order in which they run, and the ranks to try.

    Raises:
        Refused: the forward is not that of an SE layer, or cannot be read.
        NotSE: there is no pooling in it.
    """
    own = copy_to_trace(module)
    before = _attributes(own)
    try:
        graph = fx.Tracer().trace(own)
    except Exception as error:
        raise Refused(f"its forward cannot be read: {one_line(error)}") from None
    children = dict(own.named_modules())
    pools = [node for node in graph.nodes if is_pool(node, children)]
    if not pools and not has_pooling(module):
        raise NotSE("there is no pooling over space")
    for name, _ in own.named_buffers():
        raise Refused(f"it has a buffer ({name}): its result may depend on more than its input")
    if _attributes(own) != before:
        raise Refused("its forward changes the module's own attributes")
    for node in graph.nodes:
        _check_node(node, children)
    if not pools:
        raise Refused("there is no pooling over space")
    if not any(map(is_product, graph.nodes)):
        raise Refused("it computes a gate only: the product is elsewhere")
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    calls = [target for target in calls if isinstance(children[target], POINTWISE)]
    if len(calls) not in (1, 2):
        raise Refused(f"it runs {len(calls)} pointwise layers, not two (or one, of C to C)")
    projections = [children[target] for target in calls]
    projection_widths(projections)
    rank = rank_of(own, projections)
    conv = any(type(layer) is not nn.Linear for layer in projections)
    return calls, (rank,) if rank and conv else (3, 4, 5)


def copy_to_trace(module: nn.Module) -> nn.Module:
    """A copy over the same parameters: a forward that keeps something keeps it there.

    Raises:
        Refused: it cannot be copied.
    """
    try:
        same = {id(tensor): tensor for tensor in module.parameters()}
        return copy.deepcopy(module, {**same, **prove.without_hooks(module)})
    except Exception as error:
        raise Refused(f"it cannot be copied: {one_line(error)}") from None


def _check_node(node: fx.Node, children: dict[str, nn.Module]) -> None:
    """Raises Refused if a step of a forward is none of an SE layer's."""
    if node.op == "get_attr":
        raise Refused(f"its forward uses {node.target} directly")
    if node.op == "call_module":
        child = children[str(node.target)]
        if not isinstance(child, POINTWISE) and type(child) not in (*POOLS, *_ELEMENTWISE):
            raise Refused(f"a {type(child).__name__} ({node.target}) takes part")
    if node.op in ("call_function", "call_method") and name_in(node) not in _FUNCTIONS:
        raise Refused(f"its forward uses {name_in(node)}")


def name_in(node: fx.Node) -> str:
    """What a node calls, without the underscore of what works in place."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.rstrip("_")


def is_pool(node: fx.Node, children: dict[str, nn.Module]) -> bool:
    """Whether it averages over space, as far as a trace knows."""
    if node.op == "call_module":
        return isinstance(children[str(node.target)], POOLS)
    return node.op in ("call_function", "call_method") and name_in(node) in POOL_FUNCTIONS


def is_product(node: fx.Node) -> bool:
    """A product of two tensors, as far as a trace knows."""
    tensors = all(isinstance(argument, fx.Node) for argument in node.args)
    return tensors and name_in(node) in ("mul", "imul", "multiply")


def _attributes(module: nn.Module) -> list[dict[str, Any]]:
    """Every attribute by identity, containers by length too."""

    def mark(value: Any) -> Any:
        return id(value), len(value) if isinstance(value, (list, dict, set, tuple)) else None

    return [
        {name: mark(value) for name, value in child.__dict__.items()} for child in module.modules()
    ]
