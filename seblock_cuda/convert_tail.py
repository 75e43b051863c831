"""The tail of a residual block: what follows SE, ``relu(se(x) + shortcut)``, folded into the op.

The block's forward is traced (torch.fx) around its SE layer; the product, the add and the ReLU
become one call, the rest stays line by line as it was. So it also stays as it was at conversion:
what the forward decides from its own attributes (is there a drop path?) is decided then.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from seblock_cuda.convert_probe import compare, own_copy, plain_state
from seblock_cuda.convert_recipe import Refused

_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")


class FusedTail(nn.Module):
    """A residual block whose SE layer also adds the shortcut and applies the ReLU.

    Like :class:`FusedSE` it shares the original's dictionaries.
    """

    original: nn.Module
    se_path: str
    _run: Callable[..., Tensor]

    def __init__(self, original: nn.Module, se_path: str) -> None:
        super().__init__()
        run = _folded_forward(original, se_path)
        self.__dict__.update(original.__dict__, original=original, se_path=se_path, _run=run)

    def forward(self, inputs: Tensor) -> Tensor:
        device = inputs.device.type
        if torch.is_autocast_enabled(device) and inputs.dtype != torch.get_autocast_dtype(device):
            # branch and shortcut may differ in dtype: the block decides what their sum has
            y: Tensor = self.original(inputs)
            return y
        return self._run(self, inputs)

    def extra_repr(self) -> str:
        return f"{type(self.original).__name__}, tail fused into {self.se_path}"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.__dict__["_run"] = _folded_forward(self.original, self.se_path)


def find_block(model: nn.Module, path: str) -> tuple[str, str]:
    """The path of the block around an SE layer, and the layer's path within it.

    The block is the nearest ancestor that is more than a container.
    """
    names = path.split(".")
    for depth in range(len(names) - 1, -1, -1):
        block = model.get_submodule(".".join(names[:depth]))
        if getattr(type(block), "forward", None) is not nn.Sequential.forward:
            return ".".join(names[:depth]), ".".join(names[depth:])
    return "", path


def fold_tail(block: nn.Module, se_path: str) -> tuple[FusedTail, float]:
    """The block with its tail folded, and the largest relative difference in a comparison of both.

    It is always compared: a trace does not see what a block changes in place.

    Raises:
        Refused: something else follows SE, or the numbers differ.
    """
    hooks = (block._forward_hooks, block._forward_pre_hooks, block._backward_hooks)
    if any(hooks) or block._backward_pre_hooks or "forward" in block.__dict__:
        raise Refused("the block has hooks, or another forward than its class")
    folded = FusedTail(block, se_path)
    with plain_state():
        return folded, _prove_tail(block, se_path)


def _prove_tail(block: nn.Module, se_path: str) -> float:
    own = own_copy(block)
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
        largest = max(largest, compare(own, FusedTail(own, se_path), own, x))
    return largest


def _fill(own: nn.Module) -> None:
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.no_grad():
        for parameter in own.parameters():
            scale = max(parameter[0].numel(), 1) ** -0.5
            parameter.normal_(generator=generator).mul_(scale)
        for name, buffer in own.named_buffers():
            buffer.fill_(1 if name.endswith("running_var") else 0)


def _folded_forward(block: nn.Module, se_path: str) -> Callable[..., Tensor]:
    """The block's forward as a function of (module, inputs), with the tail in the SE layer."""
    training = block.training
    sources = []
    for mode in (not training, training):
        block.training = mode
        graph = _fold(block, se_path)
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


def _fold(block: nn.Module, se_path: str) -> fx.Graph:
    layer = block.get_submodule(se_path)
    try:
        graph = _Tracer(layer).trace(block)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise Refused(f"the block's forward cannot be read: {lines[0][:100]}") from None
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    modules = [node for node in graph.nodes if node.op == "call_module"]
    calls = [node for node in modules if block.get_submodule(str(node.target)) is layer]
    if len(inputs) != 1 or len(calls) != 1:
        raise Refused("the block takes more than one input, or calls SE more than once")
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
    with graph.inserting_after(relu):
        folded = graph.call_module(se_path, (*se.args, shortcut))
    relu.replace_all_uses_with(folded)
    for node in (relu, add):
        graph.erase_node(node)
    while gated is not se:
        gated, unused = gated.all_input_nodes[0], gated
        graph.erase_node(unused)
    graph.erase_node(se)
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
