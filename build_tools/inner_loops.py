"""What a vector of 16 bytes costs in the machine code of the stages that walk over x.

A task is 4 vectors a thread, without a loop: their loads stand together, then what is done with
them. So a *run* of 16-byte loads marks the place, and the instructions from its first load to where
the sums leave the thread (squeeze), or from store to store (scale), are counted.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from build_tools.disassembly import Instruction

ARCHITECTURES = ["sm_80", "sm_90"]
_SUMS_LEAVE = ("STS", "SHFL", "BAR")
_MEMORY = ("LDG", "STG", "LDS", "STS")


class InnerLoop(NamedTuple):
    in_flight: int  # 16-byte loads before the first is used
    instructions: float  # per vector


def inner_loops(name: str, code: list[Instruction]) -> dict[str, InnerLoop]:
    """By path, those of the kernel of this short name; none if it does not walk over x by vectors.

    With a mask the 4 vectors of a thread are two runs: the worse counts.
    """
    planes = "<true, nchw" in name
    if name.startswith("squeeze_kernel<true"):
        found = _squeezes(code, planes, tensors=2 if "Gradient" in name else 1)
    elif name.startswith("scale_kernel<true"):
        found = _scales(code, planes)
    else:
        return {}
    worst: dict[str, InnerLoop] = {}
    for path, loop in found:
        before = worst.get(path, loop)
        worst[path] = InnerLoop(
            min(before.in_flight, loop.in_flight), max(before.instructions, loop.instructions)
        )
    return worst


def _runs(code: list[Instruction], *breaks: str) -> list[list[int]]:
    """Where 16-byte loads stand that none of `breaks` comes between."""
    runs: list[list[int]] = [[]]
    for at, instruction in enumerate(code):
        if instruction.name in breaks and runs[-1]:
            runs.append([])
        if instruction.name == "LDG" and instruction.is_wide:
            runs[-1].append(at)
    return [run for run in runs if run]


def _in_flight(code: list[Instruction], run: list[int]) -> int:
    loaded: set[int] = set()
    for at in range(run[0], len(code)):
        if code[at].mentions(loaded):
            return sum(load < at for load in run)
        if at in run:
            first = int(code[at].operands.split(",")[0].removeprefix("R"))
            loaded |= set(range(first, first + 4))
    return len(run)


def _squeezes(code: list[Instruction], planes: bool, tensors: int) -> list[tuple[str, InnerLoop]]:
    found = []
    runs = _runs(code, "STG", *_SUMS_LEAVE)
    for run in runs:
        vectors = len(run) // tensors
        others = [other[0] for other in runs]
        after = range(run[0] + 1, len(code))
        end = next(at for at in after if at in others or code[at].name in _SUMS_LEAVE)
        path, more = "planes" if planes else "rows", 0.0
        if planes and code[end].name == "STS" and code[end].is_wide:
            stores = [at for at in after if code[at].name == "STS" and code[at].is_wide]
            path, end, more = "small planes", stores[-1], _of_a_small_plane(code[stores[-1] :])
        counted = _executed(code, run[0], end) / vectors + more
        found.append((path, InnerLoop(_in_flight(code, run), counted)))
    return found


def _executed(code: list[Instruction], begin: int, end: int) -> int:
    """Instructions from begin to end, without the blocks that only a plane's end vectors run."""
    count, at = 0, begin
    while at < end:
        count += 1
        target = _target(code[at])
        at += 1
        skipped = [i for i in code[at:end] if i.address < target]
        if skipped and not any(i.name in _MEMORY for i in skipped):
            at += len(skipped)
    return count


def _target(instruction: Instruction) -> int:
    """Where a branch leads; 0: no branch."""
    found = re.search(r"0x([0-9a-f]+)", instruction.operands) if instruction.name == "BRA" else None
    return int(found[1], 16) if found else 0


def _of_a_small_plane(code: list[Instruction]) -> float:
    """The loop in which a thread adds a plane's elements out of shared memory: for 8 of them."""
    for at, instruction in enumerate(code):
        body = [i for i in code[: at + 1] if 0 < _target(instruction) <= i.address]
        loads = sum(i.name == "LDS" for i in body)
        if loads >= 4 and all(i.name != "STG" for i in body):
            return len(body) * 8 / loads
    raise ValueError("no loop over the elements of a small plane")


def _scales(code: list[Instruction], planes: bool) -> list[tuple[str, InnerLoop]]:
    found = []
    for run in _runs(code, "STG"):
        stores = []
        for at in range(run[-1], len(code)):
            if code[at].is_wide and code[at].name == "STG":
                stores.append(at)
            elif code[at].is_wide and code[at].name == "LDG" and stores:
                break
        cost = (stores[-1] - stores[0]) / (len(stores) - 1)
        found.append(InnerLoop(_in_flight(code, run), cost))
    if not planes:
        return [("rows", loop) for loop in found]
    found.sort(key=lambda loop: loop.instructions)
    half = len(found) // 2
    return [
        ("planes of whole vectors" if i < half else "planes", loop) for i, loop in enumerate(found)
    ]
