"""The guards that kernels on the SIMT harness must pass: each says what is wrong, or nothing."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

import torch

from seblock_cuda import _core
from tests import cases
from tests.simt import audit, kernels

# Bank conflicts per request to shared memory that a strategy may have: the nhwc factors of T and R
# are written out of order, a few requests per task.
CONFLICTS = {"split": 0.0, "stream": 0.2, "resident": 0.2}


def border_bytes(problem: cases.Problem, plan: _core.SePlan) -> int:
    """At most so many bytes of a tensor like x lie in vectors that two sums share."""
    n, c = problem.x.shape[:2]
    s = problem.x.shape[2:].numel()
    splits = plan.split.splits if plan.strategy == "split" else 1
    if kernels.layout_of(problem.x) == 1 or (s % plan.vec == 0 and splits == 1):
        return 0
    return plan.vec * problem.x.itemsize * n * c * splits


def traffic(module: ModuleType, problem: cases.Problem, strategy: str = "split") -> str:
    """Every access is within bounds, aligned, initialised and ordered; the bytes are those that the
    plan states: beyond them, only vectors on the border of two sums are read twice; what is read
    again is not far behind; sectors are used whole; shared memory has no conflicts to speak of.
    """
    plan = audit.plan_of(module, problem, strategy)
    c = problem.x.shape[1]
    s = problem.x.shape[2:].numel()
    border = border_bytes(problem, plan)
    try:
        summaries = audit.measure(module, problem, strategy)
    except RuntimeError as error:
        return str(error)
    faults = []
    for direction, summary in summaries.items():
        for name, (counted, stated) in audit.differences(summary, getattr(plan, direction)).items():
            faults.append(f"{direction}: {name}: counted {counted}, the plan states {stated}")
        stated = getattr(plan, direction)
        tensors = 1 if direction == "forward" else 2
        tensors += problem.residual_activation is not None
        beyond = summary.x_repeated - stated.again
        if not 0 <= beyond <= tensors * border:
            faults.append(f"{direction}: x: {summary.x_repeated} bytes read again in one launch")
        reach = stated.window or stated.read + stated.written
        biases = 4 * (c + problem.reduce_weight.shape[0])
        if summary.distance > reach + stated.weights + stated.small + stated.written + biases:
            faults.append(f"{direction}: read again {summary.distance} bytes later")
        if summary.bank_conflicts > CONFLICTS[strategy] * summary.shared_requests:
            faults.append(f"{direction}: {summary.bank_conflicts} bank conflicts")
        whole_sectors = s * problem.x.itemsize % 32 == 0 and c * problem.x.itemsize % 32 == 0
        if whole_sectors and summary.efficiency < 0.95:
            faults.append(f"{direction}: sector efficiency {summary.efficiency:.3f}")
    return "; ".join(faults)


def values(module: ModuleType, problem: cases.Problem, strategy: str = "split") -> str:
    """The results are no further from float64 than plain PyTorch's, the means are those of x."""
    try:
        run = kernels.run(module, problem, strategy=strategy)
    except RuntimeError as error:
        return str(error)
    means = problem.x.double().flatten(2).mean(2)
    if not torch.allclose(run.pooled.double(), means, rtol=1e-4, atol=1e-4):
        return f"pooled: {(run.pooled.double() - means).abs().max():.3g} off"
    try:
        cases.check_no_worse_than_plain(cases.named(run.y, run.gradients), problem)
    except AssertionError as error:
        return str(error)
    return ""


def schedules(
    module: ModuleType,
    problem: cases.Problem,
    seeds: Iterable[int] = range(1, 21),
    strategy: str = "split",
) -> str:
    """Whatever the order of threads and blocks, and with few resident blocks: the same bits, and
    no access to what another block wrote without a release and an acquire in between.
    """
    names = ("y", "mask", "pooled", "z1", "gate")
    try:
        expected = kernels.run(module, problem, strategy=strategy)
        for seed in seeds:
            module.set_schedule(resident=1 + seed % 3, seed=seed)
            run = kernels.run(module, problem, strategy=strategy)
            pairs = [(name, getattr(expected, name), getattr(run, name)) for name in names]
            gradients = zip(expected.gradients._fields, expected.gradients, run.gradients)
            for name, before, now in [*pairs, *gradients]:
                if before is not None and not torch.equal(before, now):
                    return f"seed {seed}: other bits in {name}"
        module.set_schedule(resident=3, seed=1)
        kernels.run(module, problem, strategy=strategy, record=True)
    except RuntimeError as error:
        return str(error)
    finally:
        module.set_schedule()
    return ""
