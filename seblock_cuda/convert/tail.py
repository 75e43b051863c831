"""The tail of a residual block: what follows SE, ``relu(se(x) + shortcut)``, folded into the op.

The block's forward is traced (torch.fx) around its SE layer; the product, the add and the ReLU
become one call, the rest stays line by line as it was. What a forward decides from its own
attributes (is there a drop path?) is decided once, here; if one of them changes, or anything that
is not called any more, the block runs its own forward.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from seblock_cuda.convert.projections import is_sequential
from seblock_cuda.convert.prove import compare, own_copy
from seblock_cuda.convert.replace import become, why_not
from seblock_cuda.convert.report import Refused, one_line
from seblock_cuda.intact import Plain, Reading, is_traced, warn_once

_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")


class Tail:
    """A block's forward with the tail folded into its SE layer.

    Args:
        block: the block, or a copy of it.
        se_path: where its SE layer is.

    Attributes:
        skipped: the paths of the modules that are not called any more.
        forward: a function of (block, inputs); None in a copy from a file, until it is made anew.

    Raises:
        Refused: something else follows SE.
    """

    def __init__(self, block: nn.Module, se_path: str) -> None:
        self.se_path = se_path
        self.skipped: set[str] = set()
        self.forward: Callable[..., Tensor] | None = _folded_forward(block, se_path, self.skipped)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tail:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "forward": None}


class FusedTail(nn.Module):
    """A residual block whose SE layer also adds the shortcut and applies the ReLU."""

    if TYPE_CHECKING:  # TorchScript would read them
        _tail: Tail
        _reading: Reading

    def extra_repr(self) -> str:
        own = super().extra_repr()
        folded = f"tail fused into {self._tail.se_path}"
        return f"{own}, {folded}" if own else folded

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self._tail.forward is None:
            with suppress(Refused):  # it was changed: its own forward runs
                self.__dict__["_tail"] = Tail(self, self._tail.se_path)


def run_folded(block: FusedTail, plain: Plain, inputs: Tensor) -> Tensor:
    """The forward of a block with its tail folded."""
    if is_traced(inputs):
        return plain(block, inputs)
    if block._tail.forward is None or block._reading.states(block) is None:
        warn_once(block, block._reading)
        return plain(block, inputs)
    if torch._C._is_any_autocast_enabled() and _may_be_cast(inputs):
        # branch and shortcut may differ in dtype: the block decides what their sum has
        return plain(block, inputs)
    return block._tail.forward(block, inputs)


def _may_be_cast(inputs: Tensor) -> bool:
    return inputs.is_meta or inputs.dtype != torch.get_autocast_dtype(inputs.device.type)


def find_block(model: nn.Module, path: str) -> tuple[str, str]:
    """The path of the block around an SE layer, and the layer's path within it.

    The block is the nearest ancestor that is more than a container.
    """
    names = path.split(".")
    for depth in range(len(names) - 1, -1, -1):
        block = model.get_submodule(".".join(names[:depth]))
        if not is_sequential(block):
            return ".".join(names[:depth]), ".".join(names[depth:])
    return "", path


def fold(block: nn.Module, tail: Tail) -> None:
    """Folds the tail of a block, in place.

    Raises:
        Refused: something hangs on what would not be called any more.
    """
    reading = Reading(block, skipped=tail.skipped)
    if reading.states(block) is None:
        raise Refused(why_not(reading, block))
    become(block, FusedTail, run_folded, _tail=tail, _reading=reading)


def prove_tail(block: nn.Module, tail: Tail) -> float:
    """The largest relative difference between a block and what is folded, on a copy.

    It is always compared: a trace does not see what a block changes in place.

    Raises:
        Refused: the numbers differ.
    """
    own = own_copy(block)
    plain = type(own).forward
    fold(own, tail)
    assert isinstance(own, FusedTail)
    _fill(own)
    convolution = next((m for m in own.modules() if isinstance(m, nn.Conv2d)), None)
    if convolution is None:
        raise Refused("the block has no Conv2d: what it takes is not known")
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(
        2, convolution.in_channels, 6, 6, generator=generator, dtype=torch.float64, device="cpu"
    )
    largest = 0.0
    for training in (True, False):
        own.train(training)
        largest = max(largest, compare(lambda x: plain(own, x), own.forward, own, x))
    return largest


def _fill(own: nn.Module) -> None:
    """Draws a copy's parameters anew, about as large as networks begin with."""
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.no_grad():
        for parameter in own.parameters():
            scale = max(parameter.shape[1:].numel(), 1) ** -0.5
            parameter.normal_(generator=generator).mul_(scale)
        for name, buffer in own.named_buffers():
            buffer.fill_(1 if name.endswith("running_var") else 0)


def _folded_forward(block: nn.Module, se_path: str, skipped: set[str]) -> Callable[..., Tensor]:
    """The block's forward as a function of (block, inputs), with the tail in the SE layer."""
    training = block.training
    sources = []
    for mode in (not training, training):
        block.training = mode
        try:
            graph = _fold(block, se_path, skipped)
        finally:
            block.training = training
        sources.append(graph.python_code("self").src)
    if sources[0] != sources[1]:
        raise Refused("the block's forward depends on its training mode")
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(compile(code.src, f"<{type(block).__qualname__} with its tail folded>", "exec"), scope)
    forward: Callable[..., Tensor] = scope["forward"]
    return forward


class _Tracer(fx.Tracer):
    """Traces into what lies around the SE layer only."""

    def __init__(self, se: nn.Module) -> None:
        super().__init__()
        self._se = se

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m is self._se or all(inner is not self._se for inner in m.modules())


def _fold(block: nn.Module, se_path: str, skipped: set[str]) -> fx.Graph:
    """The graph of a block with the tail in its SE layer; adds the paths that it does not call."""
    layer = block.get_submodule(se_path)
    try:
        graph = _Tracer(layer).trace(block)
    except Exception as error:
        raise Refused(f"the block's forward cannot be read: {one_line(error)}") from None
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    modules = [node for node in graph.nodes if node.op == "call_module"]
    calls = [node for node in modules if block.get_submodule(str(node.target)) is layer]
    if len(inputs) != 1 or len(calls) != 1:
        raise Refused("the block takes more than one input, or calls SE more than once")
    if any(str(node.target).startswith("_tensor_constant") for node in graph.nodes):
        raise Refused("the block's forward makes a tensor that a trace would keep")
    se = gated = calls[0]
    add = _only_user(gated)
    while add is not None and _does_nothing(block, add):
        gated, add = add, _only_user(add)
    if add is None and any(user.op == "output" for user in gated.users):
        raise Refused("nothing in the block follows SE")
    if add is None:
        raise Refused("the result of SE is used more than once")
    if add.op not in ("call_function", "call_method") or add.target not in _ADDS:
        raise Refused(f"{_describe(block, add)} sits between SE and the add")
    shortcut = _shortcut(add, gated)
    relu = _only_user(add)
    if relu is None or not _is_relu(block, relu):
        raise Refused("no ReLU follows the add")
    with graph.inserting_before(relu):
        module = graph.get_attr(se_path)
        folded = graph.call_method("_add_relu", (module, se.args[0], shortcut))
    relu.replace_all_uses_with(folded)
    unused = [relu, add]
    while gated is not se:
        unused.append(gated)
        gated = gated.all_input_nodes[0]
    for node in (*unused, se):
        graph.erase_node(node)
        if node.op == "call_module":
            names = str(node.target).split(".")
            skipped.update(".".join(names[:depth]) for depth in range(1, len(names) + 1))
    graph.lint()  # type: ignore[no-untyped-call]
    return graph


def _shortcut(add: fx.Node, gated: fx.Node) -> fx.Node:
    operands = [argument for argument in add.args if argument is not gated]
    if len(operands) != 1 or not isinstance(operands[0], fx.Node) or add.kwargs:
        raise Refused("the add is not that of two tensors")
    return operands[0]


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op != "output" else None


def _does_nothing(block: nn.Module, node: fx.Node) -> bool:
    return node.op == "call_module" and type(block.get_submodule(str(node.target))) is nn.Identity


def _is_relu(block: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(block.get_submodule(str(node.target))) is nn.ReLU
    return node.op in ("call_function", "call_method") and node.target in _RELUS


def _describe(block: nn.Module, node: fx.Node) -> str:
    if node.op == "call_module":
        return f"a {type(block.get_submodule(str(node.target))).__name__} ({node.target})"
    return str(getattr(node.target, "__name__", node.target))
