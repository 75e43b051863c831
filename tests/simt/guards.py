"""The guards that kernels on the SIMT harness must pass: each says what is wrong, or nothing."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

import torch

from seblock_cuda import _core
from tests import cases
from tests.simt import audit, kernels

# Bank conflicts per request to shared memory, by kernel. Elsewhere few bytes pass through it: sums,
# the inputs of products, small planes.
CONFLICTS = {"gradients": 0.0}
OTHER_CONFLICTS = 2.0

# Of sectors, at least; and where one holds the end of a plane or row and the begin of the next.
EFFICIENCY, EFFICIENCY_WITH_BORDERS = 0.94, 0.92

VECTOR_BYTES = 16


def border_bytes(problem: cases.Problem, direction: str) -> int:
    """At most so many bytes lie in vectors that the sums of two planes share, and are read for
    both: of x, backward of x, dy and the mask.
    """
    n, c = problem.x.shape[:2]
    s = problem.x.shape[2:].numel()
    plane = s * problem.x.itemsize
    if kernels.layout_of(problem.x) == 1 or s == 1 or plane % VECTOR_BYTES == 0:
        return 0
    masked = problem.residual_activation == "relu"
    return n * c * (VECTOR_BYTES if direction == "forward" else 2 * VECTOR_BYTES + masked)


def least_efficiency(problem: cases.Problem) -> float:
    """Of the sectors that aligned vectors are in."""
    row = problem.x.shape[1] * problem.x.itemsize
    plane = problem.x.shape[2:].numel() * problem.x.itemsize
    return EFFICIENCY if row % 32 == 0 and plane % 32 == 0 else EFFICIENCY_WITH_BORDERS


def reach(plan: _core.Plan, summary: audit.Summary, problem: cases.Problem) -> int:
    """The most bytes between two touches of a byte of x that the plan allows for, and those of the
    small tensors: in one launch the window, from launch to launch all that is read and written.
    """
    stated = plan.traffic
    small = stated.weights + stated.small + stated.written - summary.x_written
    small += sum(bias.nbytes for bias in problem.parameters[2:] if bias is not None)
    return small + (stated.window or stated.x + summary.x_written)


def traffic(
    module: ModuleType,
    problem: cases.Problem,
    strategy: str = "split",
    forced: kernels.Forced = kernels.AS_PLANNED,
) -> str:
    """Every access is within bounds, aligned, initialised and ordered; the bytes are those that the
    plan states: beyond them, only vectors on the border of two planes are read twice; what is read
    again is not far behind; sectors are used whole; shared memory has few conflicts.
    """
    plans = audit.plans_of(problem, strategy, forced)
    try:
        summaries = audit.measure(module, problem, strategy, forced)
    except RuntimeError as error:
        return str(error)
    faults = []
    for direction, summary in summaries.items():
        stated = plans[direction].traffic
        for name, (counted, planned) in audit.differences(summary, stated).items():
            faults.append(f"{direction}: {name}: counted {counted}, the plan states {planned}")
        beyond = summary.x_repeated - stated.again
        if not 0 <= beyond <= border_bytes(problem, direction):
            faults.append(f"{direction}: x: {summary.x_repeated} bytes read again in one launch")
        if summary.distance > reach(plans[direction], summary, problem):
            faults.append(f"{direction}: read again {summary.distance} bytes later")
        for kernel, conflicts in summary.conflicts.items():
            if conflicts > CONFLICTS.get(kernel, OTHER_CONFLICTS):
                faults.append(f"{direction}: {kernel}: {conflicts:.3f} bank conflicts per request")
        least = least_efficiency(problem)
        if plans[direction].vectors and least == EFFICIENCY and summary.efficiency < least:
            faults.append(f"{direction}: sector efficiency {summary.efficiency:.3f}")
    return "; ".join(faults)


def values(
    module: ModuleType,
    problem: cases.Problem,
    strategy: str = "split",
    forced: kernels.Forced = kernels.AS_PLANNED,
) -> str:
    """The results are no further from float64 than plain PyTorch's, the means are those of x."""
    try:
        run = kernels.run(module, problem, strategy=strategy, forced=forced)
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
    forced: kernels.Forced = kernels.AS_PLANNED,
) -> str:
    """Whatever the order of threads and blocks, and with few resident blocks: the same bits, and
    no access to what another block wrote without a release and an acquire in between.
    """
    try:
        expected = kernels.named(kernels.run(module, problem, strategy=strategy, forced=forced))
        for seed in seeds:
            module.set_schedule(resident=1 + seed % 3, seed=seed)
            run = kernels.named(kernels.run(module, problem, strategy=strategy, forced=forced))
            for name, before in expected.items():
                if not torch.equal(before, run[name]):
                    return f"seed {seed}: other bits in {name}"
        module.set_schedule(resident=3, seed=1)
        kernels.run(module, problem, strategy=strategy, forced=forced, record=True)
    except RuntimeError as error:
        return str(error)
    finally:
        module.set_schedule()
    return ""
