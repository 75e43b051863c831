"""What tests that run under the stand-in ask of it."""

from __future__ import annotations

import copy
import ctypes
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from tests import cases
from tests.standin.build import MAJOR


@cache
def runtime() -> ctypes.CDLL:
    """The functions of the stand-in."""
    library = ctypes.CDLL(f"libcudart.so.{MAJOR}")
    library.standin_faults.restype = ctypes.c_char_p
    library.standin_launches.restype = ctypes.c_char_p
    return library


@dataclass(frozen=True)
class Launch:
    """A launch of this package's kernels, a memset, or a kernel's attribute that was set."""

    device: int
    stream: str  # default, side, captured; attribute
    kernel: str  # or memset
    shared_bytes: int


def faults() -> list[str]:
    """What a GPU would have refused or left undefined, since the last call."""
    return runtime().standin_faults().decode().splitlines()


def launches() -> list[Launch]:
    """Since the last call."""
    lines = [line.split() for line in runtime().standin_launches().decode().splitlines()]
    return [Launch(int(line[0]), line[1], line[2], int(line[3])) for line in lines]


def pending() -> int:
    """Operations that nobody has waited for yet."""
    return int(runtime().standin_pending())


def fail_next(call: str, error: int) -> None:
    """The next call of this function of the runtime returns the error."""
    runtime().standin_fail_next(call.encode(), error)


def moved(problem: cases.Problem, device: str) -> cases.Problem:
    """The problem with its tensors on the device."""
    result = copy.copy(problem)
    for name, value in vars(problem).items():
        if isinstance(value, Tensor):
            setattr(result, name, value.to(device))
    return result
