"""Finds SE that is no module: written into a block's forward, or made of bare parameters.

The forward is traced (torch.fx) with all its children whole. SE is there if something that was
pooled over space goes through two projections (or one, of C to C) and then multiplies something
that was not pooled.
"""

from __future__ import annotations

import re
from collections.abc import Container
from functools import cache
from types import CodeType, FunctionType
from typing import Any

from torch import fx, nn

from seblock_cuda.convert.projections import (
    has_pooling,
    is_sequential,
    pointwise_width,
    widths_within,
)
from seblock_cuda.convert.read import POOL_FUNCTIONS, copy_to_trace, is_pool, is_product, name_in

_NAMED = re.compile(r"se_?(reduce|expand)", re.IGNORECASE)
_MATRIX_PRODUCTS = {"linear", "matmul", "mm", "bmm", "addmm", "einsum"} | {
    f"conv{n}d" for n in (1, 2, 3)
}
_MIXES = {"add", "iadd", "sub", "isub", "mul", "imul", "multiply", "cat"}
_BLOCK = "SE is written into this block's forward: there is no module to replace"
_PARAMETERS = "its projections are bare parameters: there are no layers to take them from"


def written_inline(module: nn.Module, reported: Container[int]) -> str | None:
    """Why a module that is no SE layer is left, if there is SE in its forward.

    Args:
        module: any module.
        reported: by id, what has its own row in the report.
    """
    if sum(bool(_NAMED.search(name)) for name in module._modules) >= 2:
        return _BLOCK
    kind: Any = type(module)
    if is_sequential(module) or not (_speaks_of_pooling(kind) or _pools(module)):
        return None
    try:
        tracer = _Tracer()
        own = copy_to_trace(module)
        try:
            graph = tracer.trace(own)
        except Exception:  # what was seen until then counts
            graph = tracer.graph
        gate = _gate(graph, dict(own.named_modules()))
    except Exception:  # nothing that is known to be SE
        return None
    if gate is None or any(id(m) in reported for path in gate for m in _along(module, path)):
        return None
    return _BLOCK if gate else _PARAMETERS


def _along(module: nn.Module, path: str) -> list[nn.Module]:
    names = path.split(".")
    return [module.get_submodule(".".join(names[:depth])) for depth in range(1, len(names) + 1)]


class _Tracer(fx.Tracer):
    """Traces a forward, and the Sequentials that it calls."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not is_sequential(m)


def _pools(module: nn.Module) -> bool:
    children = [c for c in module.children() if not next(c.children(), None) or is_sequential(c)]
    return any(map(has_pooling, children))


@cache
def _speaks_of_pooling(kind: Any) -> bool:
    """Whether a method of a class uses a function that pools."""
    codes: list[CodeType] = []
    for base in kind.__mro__:
        if base not in nn.Module.__mro__:
            codes += [f.__code__ for f in vars(base).values() if isinstance(f, FunctionType)]
    return any(not POOL_FUNCTIONS.isdisjoint(code.co_names) for code in codes)


def _gate(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[str] | None:
    """The modules that make the gate of the first product with one; None if there is none."""
    # node -> (projections since the pooling, their modules), for what was pooled
    pooled: dict[fx.Node, tuple[int, list[str]]] = {}
    for node in graph.nodes:
        inputs = [pooled[each] for each in node.all_input_nodes if each in pooled]
        others = [n for n in node.all_input_nodes if n not in pooled and n.op != "get_attr"]
        if is_product(node) and inputs and others:
            passed, paths = max(inputs)
            square = len(paths) == 1 and _is_square(modules[paths[0]])
            if passed >= 2 or square:
                return paths
        if is_pool(node, modules) or _is_pooling_module(node, modules):
            pooled[node] = (0, [])
        elif others and name_in(node) in _MIXES:
            continue  # what was pooled is in it, but it is not pooled
        elif inputs and "softmax" not in f"{node.target} {_kind(node, modules)}".lower():
            passed, paths = max(inputs)
            pooled[node] = (passed + _projections(node, modules), [*paths, *_path(node, modules)])
    return None


def _is_square(module: nn.Module) -> bool:
    width = pointwise_width(module)
    return width is not None and width[0] == width[1]


def _is_pooling_module(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op != "call_module":
        return False
    module = modules[str(node.target)]
    return has_pooling(module) and not widths_within(module)


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    return type(modules[str(node.target)]).__name__ if node.op == "call_module" else ""


def _projections(node: fx.Node, modules: dict[str, nn.Module]) -> int:
    """How many projections a node is."""
    if node.op == "call_module":
        return len(widths_within(modules[str(node.target)]))
    return int(name_in(node) in _MATRIX_PRODUCTS)


def _path(node: fx.Node, modules: dict[str, nn.Module]) -> list[str]:
    return [str(node.target)] if _projections(node, modules) and node.op == "call_module" else []
