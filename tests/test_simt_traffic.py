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

# What the strategies divide: several groups of samples, channel slices, row slices.
SHAPES = {
    **cases.SHAPES,
    "groups": (5, 64, (7, 7), 128),
    "channel slices": (3, 64, (40, 40), 8),
    "row slices": (3, 48, (31, 33), 6),
}
KERNELS = Path(__file__).parent.parent / "csrc" / "cuda" / "kernels"


def check(
    simt: ModuleType, problem: cases.Problem, strategy: str
) -> dict[str, audit.Summary] | None:
    """The bytes are those of the plan; None, after a visible skip, if there is no such plan."""
    try:
        plan = audit.plan_of(simt, problem, strategy)
    except ValueError as reason:
        pytest.skip(str(reason))
    summaries = audit.measure(simt, problem, strategy)
    for direction, summary in summaries.items():
        differs = audit.differences(summary, getattr(plan, direction))
        assert not differs, f"{direction}: (counted, stated by the plan): {differs}"
    return summaries


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
    assert audit.plan_of(simt, problem).vec == 1
    check(simt, problem, "split")
    reason = "float64" if dtype == torch.float64 else "16-byte boundary"
    for strategy in ("stream", "resident"):
        with pytest.raises(ValueError, match=reason):
            audit.plan_of(simt, problem, strategy)


@pytest.mark.parametrize("strategy", kernels.STRATEGIES)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("workload", workloads(), ids=lambda row: row.name)
def test_workload_is_within_the_limits_of_its_strategy(
    simt: ModuleType, workload: Workload, layout: str, strategy: str
) -> None:
    """Each strategy reads x (backward: x and dy) from memory once and writes y (dx) once.

    S reads x (dy) once more in a later launch; T in the same launch, within the planned window; R
    not at all. The tails are in test_the_plan_states_the_bytes. Whole planes, one sample.
    """
    problem = audit.problem_of(workload, layout)
    summaries = check(simt, problem, strategy)
    assert summaries is not None
    x = problem.x.nbytes
    plan = audit.plan_of(simt, problem, strategy)
    again = {"split": x, "stream": 0, "resident": 0}[strategy]  # in a later launch
    repeated = {"split": 0, "stream": x, "resident": 0}[strategy]
    border = guards.border_bytes(problem, plan)
    for direction, summary in summaries.items():
        tensors = 1 if direction == "forward" else 2
        assert (summary.x_first, summary.x_again, summary.x_written) == (tensors * x, again, x)
        assert repeated <= summary.x_repeated <= repeated + tensors * border
        assert border <= 0.2 * x and summary.x_repeated <= repeated + 0.05 * x
        assert summary.efficiency >= 0.95
        assert summary.bank_conflicts <= guards.CONFLICTS[strategy] * summary.shared_requests
        stated = getattr(plan, direction)
        biases = 4 * (workload.channels + workload.reduced)
        between = stated.window if strategy == "stream" else stated.x
        rest = stated.weights + stated.small + stated.written + biases
        assert summary.distance <= between + rest
        assert summary.weights == stated.weights  # once per group of samples and row slice
        assert (
            stated.launches
            == {"split": (4, 5), "stream": (1, 2), "resident": (1, 2)}[strategy][
                direction == "backward"
            ]
        )


def test_kernels_reach_global_memory_through_vec_only() -> None:
    """No kernel dereferences a pointer of its parameters: the harness would not see it."""
    direct = re.compile(r"reinterpret_cast|\b(?:p|stage|params)(?:\.\w+)+\[|[=(,]\s*\*\w")
    for file in KERNELS.glob("*.cuh"):
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            assert not direct.search(line.split("//")[0]), f"{file.name}:{number}: {line}"
