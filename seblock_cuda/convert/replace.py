"""Makes a module a fused one, and back: by its class, so that it stays the same object.

Names, order and identity of all that it holds, the hooks on it and every reference to it are what
they were; its class is a subclass of the one that it had, so that methods, class attributes and
``isinstance`` work.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor, nn

from seblock_cuda.convert.report import Refused
from seblock_cuda.fused import FusedSE, Recipe, run_fused
from seblock_cuda.intact import Reading, in_place_of

_OURS = ("_recipe", "_reading", "_tail")  # what a fused module holds beyond the plain one


def fuse(module: nn.Module, recipe: Recipe) -> None:
    """Makes an SE layer run through the op.

    Raises:
        Refused: something hangs on its parts, or its class has attributes of the same names.
    """
    reading = Reading(module, recipe.projections)
    if reading.operands(module) is None:
        raise Refused(why_not(reading, module))
    become(module, FusedSE, run_fused, _recipe=recipe, _reading=reading)


def why_not(reading: Reading, module: nn.Module) -> str:
    """Why a module that was just read would run as plain PyTorch."""
    return reading.reason(module) or "there are hooks for all modules, or an open record_gates"


def become(module: nn.Module, mixin: Any, run: Callable[..., Tensor], **ours: Any) -> None:
    """Gives a module the subclass of its class in which `run` takes the place of forward.

    Raises:
        Refused: its class has attributes of the same names.
    """
    kind: Any = type(module)
    taken = [name for name in vars(mixin) if name not in vars(nn.Module) and hasattr(kind, name)]
    taken += [name for name in ours if name in module.__dict__]
    if taken:
        raise Refused(f"it has its own {', '.join(taken)}")
    module.__class__ = fused_class(mixin, run, kind)
    module.__dict__.update(ours)


def is_converted(module: nn.Module) -> bool:
    """Whether a module's class was given to it here."""
    return "_made" in vars(type(module))


def restore(module: nn.Module) -> bool:
    """Gives a module its own class back; whether it had another one."""
    if not is_converted(module):
        return False
    module.__class__ = vars(type(module))["_made"][-1]
    for name in _OURS:
        module.__dict__.pop(name, None)
    return True


@cache
def fused_class(mixin: Any, run: Callable[..., Tensor], plain: Any) -> Any:
    """The subclass of a plain class that runs fused; it goes by the name of the plain class."""

    def reduce(self: nn.Module, protocol: int) -> Any:
        if type(self) is not fused:  # of a subclass that others have made of it
            return nn.Module.__reduce_ex__(self, protocol)
        return _new, made[1:], self.__getstate__()  # type: ignore[no-untyped-call]

    made = (fused_class, mixin, run, plain)
    body = {
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
        "__reduce_ex__": reduce,
        "_made": made,
        "forward": in_place_of(plain.forward, run),
    }
    fused = types.new_class(plain.__name__, (mixin, plain), {}, lambda names: names.update(body))
    return fused


def _new(mixin: Any, run: Callable[..., Tensor], plain: Any) -> Any:
    """What copy and pickle make a fused module of, before they give it its state."""
    kind = fused_class(mixin, run, plain)
    return kind.__new__(kind)
