"""Times the plans of a problem on a GPU, and plain PyTorch and a copy of x beside them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from seblock_cuda import _ops, plan_files
from seblock_cuda.plan_files import Choice, Device
from seblock_cuda.plans import TAILS, Problem

SECONDS = 0.05  # of measuring, for a problem
CALLS = 3  # of a candidate, before the next one has its turn
LEAST_ROUNDS, MOST_ROUNDS = 3, 40
MOST_SETS = 64  # of inputs


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a call: the median, and the fifth fastest and slowest of all."""

    ms: float
    p20: float
    p80: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        ordered = sorted(samples)
        fifth = len(ordered) // 5
        return cls(median(ordered), ordered[fifth], ordered[-1 - fifth])


@dataclass(frozen=True)
class Measured:
    """What :func:`measure` finds: a timing for each candidate, in their order; the rivals'."""

    candidates: list[Timing]
    plain: Timing
    copy: Timing


def measure(
    problem: Problem, choices: Sequence[Choice], model: Device, device: torch.device
) -> Measured:
    """Times candidates in turns, and plain PyTorch and a copy of x beside them.

    CUDA events around every call; the inputs rotate through more than twice the L2 cache. Who is
    slower than the best with certainty (p20 above its p80) is not called again.
    """
    sets = _input_sets(problem, model, device)
    calls: list[Callable[[_Inputs], object]] = [_Inputs.call] * len(choices)
    calls += [_Inputs.plain, _Inputs.copy]
    samples: list[list[float]] = [[] for _ in calls]
    turn, ends = itertools.cycle(sets), time.monotonic() + SECONDS

    def run(which: int, count: int) -> list[tuple[Any, Any]]:
        if which < len(choices):
            plan_files.use(model, {problem: choices[which]})
        events = []
        for _ in range(count):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            before.record()
            calls[which](next(turn))
            after.record()
            events.append((before, after))
        return events

    alive = list(range(len(calls)))
    for which in alive:
        run(which, 1)
    for rounds in range(1, MOST_ROUNDS + 1):
        events = {which: run(which, CALLS) for which in alive}
        torch.cuda.synchronize(device)
        for which, pairs in events.items():
            samples[which] += [before.elapsed_time(after) for before, after in pairs]
        if rounds < LEAST_ROUNDS:
            continue
        if time.monotonic() > ends:
            break
        timings = [Timing.of(each) for each in samples]
        bar = min(timing.p80 for timing in timings[: len(choices)])
        always = {0, len(calls) - 2, len(calls) - 1}  # the rule's, plain PyTorch, the copy
        alive = [i for i in alive if i in always or timings[i].p20 <= bar]
    *candidates, plain, copy = (Timing.of(each) for each in samples)
    return Measured(candidates, plain, copy)


_random = torch.randn


class _Inputs:
    """Tensors of a problem, and calls on them."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        self.problem = problem
        p, dtype = problem, getattr(torch, problem.dtype)
        weights = {"dtype": getattr(torch, problem.weight_dtype), "device": device}
        self.x, self.dy = self._like_x(dtype, device), self._like_x(dtype, device)
        self.reduce = _random(p.r, p.c, **weights)
        self.expand = _random(p.c, p.r, **weights)
        self.residual = None if p.tail == "none" else self._like_x(dtype, device)
        self.target = torch.empty_like(self.x)
        self.arguments = (self.x, self.reduce, self.expand, None, None, self.residual, 0, 0)
        self.tail = TAILS.index(p.tail)
        self.saved = _ops.se_forward(*self.arguments, self.tail)[1:]
        self.leaves = [
            tensor.detach().requires_grad_() for tensor in (self.x, self.reduce, self.expand)
        ]
        with torch.enable_grad():
            self.y = self._plain(*self.leaves)

    def _like_x(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        p = self.problem
        storage = _random(p.n * p.c * p.s + 1, dtype=dtype, device=device)
        flat = storage[:-1] if p.aligned else storage[1:]
        if p.layout == "nchw":
            return flat.view(p.n, p.c, p.s)
        return flat.view(p.n, p.s, p.c).transpose(1, 2)

    def call(self) -> object:
        if self.problem.direction == "forward":
            return _ops.se_forward(*self.arguments, self.tail)
        weights = self.reduce, self.expand
        return _ops.se_backward(
            self.dy, self.x, *weights, *self.saved, False, False, 0, 0, self.tail
        )

    def plain(self) -> object:
        if self.problem.direction == "forward":
            return self._plain(self.x, self.reduce, self.expand)
        return torch.autograd.grad(self.y, self.leaves, self.dy, retain_graph=True)

    def _plain(self, x: Tensor, reduce_weight: Tensor, expand_weight: Tensor) -> Tensor:
        gate = torch.relu(x.mean(2) @ reduce_weight.to(x.dtype).T)
        gate = torch.sigmoid(gate @ expand_weight.to(x.dtype).T)
        y = x * gate.unsqueeze(2)
        if self.residual is not None:
            y = y + self.residual
        return torch.relu(y) if self.problem.tail == "add_relu" else y

    def copy(self) -> object:
        return self.target.copy_(self.x)


def _input_sets(problem: Problem, model: Device, device: torch.device) -> list[_Inputs]:
    first = _Inputs(problem, device)
    tensors = 2 if problem.direction == "forward" else 3
    one = tensors * max(first.x.numel() * first.x.element_size(), 1)
    wanted = min(2 * model.l2_bytes // one + 2, MOST_SETS)
    return [first, *(_Inputs(problem, device) for _ in range(wanted - 1))]
