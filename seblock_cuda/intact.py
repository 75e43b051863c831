"""Is a module still what was read of it? If not, it runs as the plain module that it is.

The op takes weights; it never calls the modules that hold them. So whatever hangs on those modules
(a hook, an adapter, a norm of the weight, another activation) would be ignored. Every fused module
is therefore a subclass of a plain one, keeps a :class:`Reading` of its parts, and asks it at every
call, in one walk over the parts. If a part is not as it was, the plain class's own forward runs,
which calls the children, after one warning that names the child.

A reading holds types and values, no modules: copies, pickles and replicas share it.
"""

from __future__ import annotations

import functools
import inspect
import types
import warnings
import weakref
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules import module as torch_module

Plain = Callable[..., Tensor]  # the forward of a plain class, unbound

POINTWISE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# the second in replicas and in a functional call, the others under a compiler
_TENSORS = (nn.Parameter, Tensor, FakeTensor, FunctionalTensor)
VALUES = (bool, int, float, str, tuple, type(None), types.FunctionType, types.BuiltinFunctionType)
_IGNORED = ("training", "inplace")
_GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)


class Part(NamedTuple):
    """One module within a module, as it was when it was read.

    Attributes:
        parent: the place of its parent in the walk.
        name: its name in the parent.
        path: its path in the module that was read.
        kind: its class; None's own if there is none.
        size: how many children it has.
        values: its public attributes that are plain values.
        called: whether it is called as a module all the same; then it may be anything but None.
    """

    parent: int
    name: str
    path: str
    kind: type
    size: int
    values: tuple[tuple[str, Any], ...]
    called: bool


class Reading:
    """What a module was built of when it was read.

    Args:
        module: what is read.
        projections: the paths of the pointwise layers whose tensors the op takes, in order.
        skipped: the paths of what is not called any more; everything by default.
    """

    def __init__(
        self,
        module: nn.Module,
        projections: Collection[str] = (),
        skipped: Collection[str] | None = None,
    ) -> None:
        self.values = _values(module)
        parts: list[Part] = []
        places: dict[str, int] = {}  # in the walk, of what is not called; 0 is the module itself

        def walk(module: nn.Module, place: int, prefix: str) -> None:
            for name, child in module._modules.items():
                path = prefix + name
                called = skipped is not None and path not in skipped
                values = () if child is None or called else _values(child)
                size = 0 if child is None else len(child._modules)
                parts.append(Part(place, name, path, type(child), size, values, called))
                if child is not None and not called:
                    places[path] = len(places) + 1
                    if skipped is None or any(each.startswith(f"{path}.") for each in skipped):
                        walk(child, places[path], f"{path}.")

        walk(module, 0, "")
        self.parts = tuple(parts)
        self.projections = tuple((path, places[path]) for path in projections)

    def __deepcopy__(self, memo: dict[int, Any]) -> Reading:
        return self

    def __getstate__(self) -> dict[str, Any]:
        """A class that was made here is not found by its name: it is kept as how it was made."""
        parts = [part._replace(kind=vars(part.kind).get("_made", part.kind)) for part in self.parts]
        return {**self.__dict__, "parts": parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        def found(kind: Any) -> type:
            return kind if isinstance(kind, type) else kind[0](*kind[1:])

        self.__dict__.update(state)
        self.parts = tuple(part._replace(kind=found(part.kind)) for part in state["parts"])

    def states(self, module: nn.Module, hooks: bool = True) -> list[dict[str, Any]] | None:
        """The ``__dict__`` of the module and of its parts, in the order of the walk; None if any is
        not as it was. (Any other attribute of a module takes longer to get.)

        Args:
            hooks: whether a hook on a part is a change.
        """
        state: dict[str, Any] = module.__dict__
        for name, value in self.values:
            if name not in state or state[name] != value:
                return None
        if hooks and any(_GLOBAL_HOOKS):
            return None
        found = [state]
        for parent, name, _, kind, size, values, called in self.parts:
            node = found[parent]["_modules"].get(name)
            if called:
                if (node is None) != (kind is types.NoneType):
                    return None
                continue
            if type(node) is not kind:
                return None
            if node is None:
                continue
            state = node.__dict__
            if hooks and (
                state["_forward_hooks"]
                or state["_forward_pre_hooks"]
                or state["_backward_hooks"]
                or state["_backward_pre_hooks"]
            ):
                return None
            if "forward" in state or (size and len(state["_modules"]) != size):
                return None
            for attribute, value in values:
                if attribute not in state or state[attribute] != value:
                    return None
            found.append(state)
        return found

    def operands(self, module: nn.Module, hooks: bool = True) -> list[Tensor | None] | None:
        """Weight and bias of each projection; None if anything is not as it was."""
        found = self.states(module, hooks)
        if found is None:
            return None
        tensors: list[Tensor | None] = []
        for _, place in self.projections:
            state = found[place]
            held = state["_parameters"]
            weight, bias = held.get("weight"), held.get("bias")
            if weight is None:  # a replica's, or one that FSDP flattened: a plain attribute
                weight, bias = state.get("weight"), state.get("bias")
            if type(weight) not in _TENSORS or (bias is not None and type(bias) not in _TENSORS):
                return None
            tensors += (weight, bias)
        return tensors

    def reason(self, module: nn.Module) -> str | None:
        """Why it is not as it was, in words; None if only observers hang on it."""
        for name, value in self.values:
            if getattr(module, name, None) != value:
                return f"{name} is {getattr(module, name, None)!r}, and was {value!r}"
        found: list[Any] = [module]
        for part in self.parts:
            node: Any = found[part.parent]._modules.get(part.name)
            if part.called and (node is None) == (part.kind is types.NoneType):
                continue
            same = type(node) is part.kind
            if not same:
                return f"{part.path} is {_named(type(node), part.kind)}"
            if node is None:
                continue
            found.append(node)
            if any(not isinstance(hook, Observer) for hook in hooks_of(node)):
                return f"{part.path} has hooks"
            if "forward" in node.__dict__:
                return f"the forward of {part.path} was replaced"
            if part.size and len(node._modules) != part.size:
                return f"{part.path} holds {len(node._modules)} modules, and held {part.size}"
            for name, value in part.values:
                now = getattr(node, name, None)
                if now != value:
                    return f"{part.path}.{name} is {now!r}, and was {value!r}"
        for path, place in self.projections:
            for name in ("weight", "bias"):
                tensor = getattr(found[place], name, None)
                if tensor is not None and type(tensor) not in _TENSORS:
                    return f"{path}.{name} is a {type(tensor).__name__}"
        return None


class Observer:
    """A hook that only looks: a module that has one runs as plain PyTorch without a warning."""


def hooks_of(module: nn.Module) -> list[Callable[..., Any]]:
    """Everything that is called when the module is."""
    each = (module._forward_hooks, module._forward_pre_hooks)
    both = (*each, module._backward_hooks, module._backward_pre_hooks)
    return [hook for hooks in both for hook in hooks.values()]


def _named(now: type, before: type) -> str:
    names = [kind.__name__ for kind in (now, before)]
    if names[0] == names[1]:
        names = [f"{kind.__module__}.{kind.__name__}" for kind in (now, before)]
    now_, before_ = ("None" if name == "NoneType" else f"a {name}" for name in names)
    return f"{now_}, and was {before_}"


def _values(module: nn.Module) -> tuple[tuple[str, Any], ...]:
    """Public attributes that are values; those of a pointwise layer are the op's to check."""
    if type(module) in POINTWISE:
        return ()
    return tuple(
        (name, value)
        for name, value in module.__dict__.items()
        if name[0] != "_" and name not in _IGNORED and isinstance(value, VALUES)
    )


_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def warn_once(module: nn.Module, reading: Reading) -> None:
    """Says once per module that it runs as plain PyTorch, and which child is the reason."""
    if torch.compiler.is_compiling() or module in _warned:
        return
    reason = reading.reason(module)
    if reason is None:
        return
    if not getattr(module, "_is_replica", False):  # which lives for one call
        _warned.add(module)
    name = type(module).__name__
    warnings.warn(f"{name} runs as plain PyTorch, correct but slower: {reason}", stacklevel=2)


def is_traced(x: object) -> bool:
    """Whether torch.fx or torch.jit is tracing: they are given the plain module."""
    if type(x) is not Tensor and isinstance(x, fx.Proxy):
        return True
    return torch._C._get_tracing_state() is not None and not torch.compiler.is_compiling()


def in_place_of(plain: Plain, run: Callable[..., Tensor]) -> Plain:
    """A forward that is ``run(self, plain, *inputs)``, and `plain` to whoever reads its source.

    Signature, source, globals and documentation are those of `plain`: so torch.fx, TorchScript and
    inspect see the plain module.
    """
    names = list(inspect.signature(plain).parameters)[1:]

    def call(self: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
        if named or len(inputs) != len(names):
            given = {**dict(zip(names, inputs)), **named}
            if len(given) != len(inputs) + len(named) or set(given) != set(names):
                return plain(self, *inputs, **named)  # which refuses them
            inputs = tuple(given[name] for name in names)
        return run(self, plain, *inputs)

    _seblock_call = call  # TorchScript looks names up here: none that a forward may use

    def forward(self: nn.Module, *inputs: Any, **named: Any) -> Tensor:
        return _seblock_call(self, inputs, named)

    code, closure = forward.__code__, forward.__closure__
    seen = types.FunctionType(code, plain.__globals__, "forward", None, closure)
    return functools.update_wrapper(seen, plain)
