"""The guards that kernels on the SIMT harness must pass: each says what is wrong, or nothing."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

import torch

from tests import cases
from tests.simt import audit, kernels


def _run(module: ModuleType, problem: cases.Problem) -> kernels.Run:
    return kernels.run(module, problem.dy, problem.x, *problem.parameters, *problem.names)


def traffic(module: ModuleType, problem: cases.Problem) -> str:
    """Every access is within bounds, aligned, initialised and ordered; the bytes are those that the
    plan states, and within the limits of strategy S: beyond what the plan states, only vectors on
    the border of two sums are read twice; sectors are used whole; shared memory has no conflicts.
    """
    plan = audit.plan_of(problem)
    n, c = problem.x.shape[:2]
    s = problem.x.shape[2:].numel()
    nchw = kernels.layout_of(problem.x) == 0
    shared_vectors = nchw and (s % plan.vec or plan.splits > 1)
    border = plan.vec * problem.x.itemsize * n * c * plan.splits if shared_vectors else 0
    try:
        summaries = audit.measure(module, problem)
    except RuntimeError as error:
        return str(error)
    faults = []
    for direction, summary in summaries.items():
        for name, (counted, stated) in audit.differences(summary, getattr(plan, direction)).items():
            faults.append(f"{direction}: {name}: counted {counted}, the plan states {stated}")
        allowed = border if direction == "forward" else 2 * border
        if summary.x_repeated > allowed:
            faults.append(f"{direction}: x: {summary.x_repeated} bytes read again in one launch")
        if summary.bank_conflicts:
            faults.append(f"{direction}: {summary.bank_conflicts} bank conflicts")
        whole_sectors = s * problem.x.itemsize % 32 == 0 and c * problem.x.itemsize % 32 == 0
        if whole_sectors and summary.efficiency < 0.95:
            faults.append(f"{direction}: sector efficiency {summary.efficiency:.3f}")
    return "; ".join(faults)


def values(module: ModuleType, problem: cases.Problem) -> str:
    """The results are no further from float64 than plain PyTorch's, the means are those of x."""
    run = _run(module, problem)
    means = problem.x.double().flatten(2).mean(2)
    if not torch.allclose(run.pooled.double(), means, rtol=1e-4, atol=1e-4):
        return f"pooled: {(run.pooled.double() - means).abs().max():.3g} off"
    try:
        cases.check_no_worse_than_plain(cases.named(run.y, run.gradients), problem)
    except AssertionError as error:
        return str(error)
    return ""


def schedules(
    module: ModuleType, problem: cases.Problem, seeds: Iterable[int] = range(1, 21)
) -> str:
    """Whatever the order of threads and blocks, and with few resident blocks: the same bits."""
    names = ("y", "pooled", "z1", "gate")
    try:
        expected = _run(module, problem)
        for seed in seeds:
            module.set_schedule(resident=1 + seed % 3, seed=seed)
            run = _run(module, problem)
            pairs = [(name, getattr(expected, name), getattr(run, name)) for name in names]
            gradients = zip(expected.gradients._fields, expected.gradients, run.gradients)
            for name, before, now in [*pairs, *gradients]:
                if before is not None and not torch.equal(before, now):
                    return f"seed {seed}: other bits in {name}"
    except RuntimeError as error:
        return str(error)
    finally:
        module.set_schedule()
    return ""
