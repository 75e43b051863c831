"""The CUDA kernels move the bytes that the plan states, no more: counted on the SIMT harness.

Every access is recorded, so these tests also fail at the first access outside a tensor, at a read
of a byte that nobody has written, and at a race in shared memory.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks.workloads import Workload
from benchmarks.workloads import load as workloads
from tests import cases
from tests.simt import audit, guards, kernels

# What the kernels divide: samples in several groups, strips that share a sum, chunks of a plane.
SHAPES = {
    **cases.SHAPES,
    "groups": (11, 64, (7, 7), 130),
    "strips": (3, 64, (40, 40), 8),
    "chunks": (3, 48, (31, 33), 6),
}
CUDA = Path(__file__).parent.parent / "csrc" / "cuda"


def check(
    simt: ModuleType,
    problem: cases.Problem,
    strategy: str,
    forced: kernels.Forced = kernels.AS_PLANNED,
) -> None:
    """The bytes are those of the plan; a visible skip if there is no such plan."""
    try:
        audit.plans_of(problem, strategy, forced)
    except ValueError as reason:
        pytest.skip(str(reason))
    assert guards.traffic(simt, problem, strategy, forced) == ""


@pytest.mark.parametrize("tail", [None, "add_relu"])
@pytest.mark.parametrize("strategy", kernels.STRATEGIES)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_plan_states_the_bytes(
    simt: ModuleType, shape: str, layout: str, dtype: torch.dtype, strategy: str, tail: str | None
) -> None:
    if dtype == torch.float64 and strategy != "split":
        pytest.skip("float64 is left to strategy split")
    problem = cases.make_problem(SHAPES[shape], dtype, layout, bias=True, tail=tail)
    check(simt, problem, strategy)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_misaligned_storage(simt: ModuleType, dtype: torch.dtype, layout: str) -> None:
    problem = cases.make_problem(
        cases.SHAPES["even"], dtype, layout, weight_dtype=torch.float32, tail="add_relu"
    )
    for name in ("x", "dy", "residual"):
        tensor = getattr(problem, name)
        moved = torch.empty(tensor.numel() + 1, dtype=dtype)[1:]
        moved = moved.as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)
        setattr(problem, name, moved)
    assert not any(plan.vectors for plan in audit.plans_of(problem).values())
    check(simt, problem, "split")
    reason = "float64" if dtype == torch.float64 else "16-byte boundary"
    for strategy in ("stream", "resident"):
        with pytest.raises(ValueError, match=reason):
            audit.plans_of(problem, strategy)


@pytest.mark.parametrize("group", [1, 2, 3, 8])
def test_weights_are_read_once_per_group(simt: ModuleType, group: int) -> None:
    problem = cases.make_problem((9, 40, (3, 5), 70), bias=True)
    forced = kernels.Forced(group)
    check(simt, problem, "split", forced)
    groups = -(-9 // group)
    for summary in audit.measure(simt, problem, "split", forced).values():
        assert summary.weights == groups * 2 * problem.reduce_weight.nbytes


@pytest.mark.parametrize("tail", [None, "add_relu"])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("lag", [1, 2, 5])
def test_the_second_read_is_within_the_window(
    simt: ModuleType, lag: int, layout: str, tail: str | None
) -> None:
    """Of strategy stream, with more samples than it squeezes ahead. In the order of the tickets: a
    block that is held up meanwhile may be as late as it likes.
    """
    problem = cases.make_problem((8, 64, (28, 28), 8), torch.bfloat16, layout, tail=tail)
    forced = kernels.Forced(lag=lag, blocks=1)
    plans = audit.plans_of(problem, "stream", forced)
    for direction, summary in audit.measure(simt, problem, "stream", forced).items():
        plan = plans[direction]
        assert plan.lag == lag and summary.x_repeated >= plan.traffic.again == problem.x.nbytes
        ahead = problem.x[:lag].nbytes
        assert ahead <= summary.distance <= guards.reach(plan, summary, problem)
        assert plan.traffic.window <= 4.5 * (ahead + 2 * 16 * 1024)


@pytest.mark.parametrize("strategy", kernels.STRATEGIES)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("workload", workloads(), ids=lambda row: row.name)
def test_workload_is_within_the_limits_of_its_strategy(
    simt: ModuleType, workload: Workload, layout: str, strategy: str
) -> None:
    """Each strategy reads x (backward: x and dy) from memory once and writes y (dx) once.

    split reads x (dy) once more in a later launch; stream in the same launch, within the planned
    window; resident not at all. The tails are in test_the_plan_states_the_bytes. Whole planes, one
    sample.
    """
    problem = audit.problem_of(workload, layout)
    try:
        plans = audit.plans_of(problem, strategy)
    except ValueError as reason:
        pytest.skip(str(reason))
    summaries = audit.measure(simt, problem, strategy)
    x = problem.x.nbytes
    again = {"split": x, "stream": 0, "resident": 0}[strategy]  # in a later launch
    repeated = {"split": 0, "stream": x, "resident": 0}[strategy]
    launches = {"split": (4, 5), "stream": (1, 2), "resident": (1, 2)}[strategy]
    for direction, summary in summaries.items():
        stated = plans[direction].traffic
        assert audit.differences(summary, stated) == {}
        tensors = 1 if direction == "forward" else 2
        assert (summary.x_first, summary.x_again, summary.x_written) == (tensors * x, again, x)
        border = guards.border_bytes(problem, direction)
        assert repeated <= summary.x_repeated <= repeated + border
        assert border <= tensors * 0.2 * x
        assert summary.efficiency >= guards.least_efficiency(problem)
        assert audit.worst(summary) <= guards.OTHER_CONFLICTS
        assert summary.distance <= guards.reach(plans[direction], summary, problem)
        assert summary.weights == 2 * problem.reduce_weight.nbytes
        assert stated.launches == launches[direction == "backward"]


def test_kernels_reach_global_memory_through_vec_only() -> None:
    """No kernel dereferences a pointer of its parameters: the harness would not see it."""
    direct = re.compile(
        r"reinterpret_cast<(?!uintptr_t)|\b(?:p|stage|params)(?:\.\w+)+\[|[=(,]\s*\*\w"
    )
    for file in [*CUDA.glob("kernels/*.cuh"), *CUDA.glob("drivers/*.cuh")]:
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            assert not direct.search(line.split("//")[0]), f"{file.name}:{number}: {line}"
