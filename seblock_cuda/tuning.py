"""Measures which plan runs fastest on this GPU, and keeps it: :func:`tune`, :func:`tune_op`.

A plan never changes a bit of a sample's result, so all that can change is the time.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from seblock_cuda import _ops, plan_files
from seblock_cuda.measuring import measure
from seblock_cuda.plan_files import Choice, Device
from seblock_cuda.plans import DIRECTIONS, TAILS, Problem, device_limits

if TYPE_CHECKING:
    from seblock_cuda._core import Plan

QUIET = 1.5  # slow calls over fast ones (p80 over p20); above, somebody else is on the GPU
WORTH = 0.98  # of the rule's time: what another plan may take at most


@dataclass(frozen=True)
class Row:
    """A problem, tuned.

    Attributes:
        rule, best: the rule's plan and the one that is kept, which may be the same.
        rule_ms, best_ms, plain_ms: their times and plain PyTorch's.
        of_copy: the least traffic over the best time, as a share of the speed of a copy of x.
        quiet: False: the times were too far apart to tell, the rule's plan is kept.
    """

    problem: Problem
    rule: Plan
    best: Plan
    rule_ms: float
    best_ms: float
    plain_ms: float
    of_copy: float
    quiet: bool

    def __str__(self) -> str:
        p = self.problem
        cells = (
            f"{p.n} x {p.c} x {p.s} / {p.r} {p.dtype} {p.layout} {p.tail} {p.direction}",
            f"{_short(self.rule)} {self.rule_ms:.4f}",
            f"{_short(self.best)} {self.best_ms:.4f}",
            f"{self.of_copy:.0%}",
            f"{self.plain_ms:.4f}",
            "" if self.quiet else "not quiet: the rule's plan is kept",
        )
        return " | ".join(cells)


class Tuning:
    """What was tuned: iterable, and a table when printed.

    Attributes:
        rows: a :class:`Row` for every problem.
        left: problems for which the budget did not last.
        path: the file where it is kept; None if it is not.
    """

    def __init__(self, rows: list[Row], left: int, path: Path | None) -> None:
        self.rows, self.left, self.path = rows, left, path

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        if not self.rows and not self.left:
            return "nothing to tune: no fused SE layer was called"
        lines = ["problem | rule, ms | best, ms | of copy | plain, ms |", *map(str, self.rows)]
        if self.left:
            lines.append(f"{self.left} problems are left: the budget did not last")
        if slow := [row for row in self.rows if row.plain_ms < row.best_ms]:
            lines.append(f"plain PyTorch is faster for {len(slow)} of them: please report this")
        kept = f"kept in {self.path}" if self.path else "not kept: for this process only"
        return "\n".join([*lines, kept])


def tune(
    model: nn.Module,
    *inputs: Any,
    training: bool = True,
    budget: float | None = None,
) -> Tuning:
    """Tunes the fused SE layers that a forward of the model calls.

    The model is run once on `inputs`, in evaluation and without gradients: nothing of it changes.

    Args:
        model: on a CUDA device, with fused layers (:func:`seblock_cuda.convert_se_modules`).
        inputs: what it is called with, of the size and dtype that will be used; under
            ``torch.autocast`` if training will be.
        training: the backward too.
        budget: seconds after which no further problem is begun; None: no limit.

    Returns:
        :class:`Tuning`. The plans are used from now on, and kept for later processes.

    Raises:
        RuntimeError: the CUDA kernels cannot run here; the message says why.
    """
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    _check(device)
    return tune_op(collect(model, *inputs, training=training), device=device, budget=budget)


def tune_op(
    problems: Iterable[Problem],
    *,
    device: torch.device | str = "cuda",
    budget: float | None = None,
) -> Tuning:
    """Tunes these problems, on this device.

    Args:
        problems: :class:`Problem`, each one direction of one layer.
        device: a CUDA device.
        budget: seconds after which no further problem is begun; None: no limit.

    Returns:
        :class:`Tuning`. The plans are used from now on, and kept for later processes.

    Raises:
        RuntimeError: the CUDA kernels cannot run there; the message says why.
    """
    device = torch.device(device)
    _check(device)
    wanted = list(dict.fromkeys(problems))
    model, started = Device.of(device), time.monotonic()
    rows: list[Row] = []
    try:
        for problem in _with_progress(wanted):
            if budget is not None and time.monotonic() - started > budget:
                break
            rows.append(_tuned(problem, model, device))
    finally:  # what was measured counts, whatever ended it
        path = _keep(model, {row.problem: _choice(row.best) for row in rows})
    return Tuning(rows, len(wanted) - len(rows), path)


def _keep(model: Device, choices: dict[Problem, Choice]) -> Path | None:
    try:
        return plan_files.keep(model, choices) if choices else None
    except OSError as error:
        warnings.warn(f"the plans are used, but cannot be kept: {error}", stacklevel=3)
        return None


def _check(device: torch.device) -> None:
    reason = _ops.cuda_unusable_reason(device.index or 0)
    if reason is None and device.type != "cuda":
        reason = f"the model is on {device}"
    if reason:
        raise RuntimeError(f"tuning needs a GPU: {reason}")


class _Collect(TorchDispatchMode):
    """Sees every call of the op: modes do."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[Problem, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in [forward.default for forward in _ops.forwards()]:
            x, reduce_weight, _, _, _, residual, _, _, tail = args
            for direction in DIRECTIONS:
                self.found[Problem.of(x, reduce_weight, residual, TAILS[tail], direction)] = None
        return func(*args, **(kwargs or {}))


def collect(model: nn.Module, *inputs: Any, training: bool = True) -> list[Problem]:
    """The problems that a forward of the model meets, and its backward; each once.

    Runs it in evaluation, without gradients, and leaves every module in the mode that it was in.
    """
    _ops.require()
    modes = {module: module.training for module in model.modules()}
    mode = _Collect()
    try:
        model.eval()
        with torch.no_grad(), mode:
            model(*inputs)
    finally:
        for module, was_training in modes.items():
            module.training = was_training
    return [each for each in mode.found if training or each.direction == "forward"]


def _tuned(problem: Problem, model: Device, device: torch.device) -> Row:
    plans = problem.candidates(device_limits(device))
    choices, best = [_choice(plan) for plan in plans], 0
    try:
        with torch.cuda.device(device):  # whose stream the events are of
            found = measure(problem, choices, model, device)
        rule = found.candidates[0]
        quiet = rule.p80 <= QUIET * rule.p20
        fastest = min(range(len(plans)), key=lambda i: found.candidates[i].ms)
        if quiet and found.candidates[fastest].ms <= WORTH * rule.ms:
            best = fastest
    finally:  # measuring leaves another one in use
        plan_files.use(model, {problem: choices[best]})
    ms = found.candidates[best].ms
    passes = 2 if problem.direction == "forward" else 3  # a copy makes 2
    passes += {"none": 0, "add": problem.direction == "forward", "add_relu": 1}[problem.tail]
    of_copy = passes / 2 * found.copy.ms / ms
    return Row(problem, plans[0], plans[best], rule.ms, ms, found.plain.ms, of_copy, quiet)


def _choice(plan: Plan) -> Choice:
    stream = plan.strategy == "stream"
    group = plan.group if plan.strategy == "split" else 0
    return Choice(plan.strategy, group, plan.lag if stream else 0, plan.blocks if stream else 0)


def _short(plan: Plan) -> str:
    choice = _choice(plan)
    numbers = [f"{name} {n}" for name in ("group", "lag", "blocks") if (n := getattr(choice, name))]
    return " ".join([choice.strategy, *numbers])


def _with_progress(problems: list[Problem]) -> Iterable[Problem]:
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:  # nice to have
        return problems
    shown: Iterable[Problem] = tqdm(problems, unit="problem", disable=None)
    return shown
