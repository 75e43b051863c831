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
from tests.simt import audit

KERNELS = Path(__file__).parent.parent / "csrc" / "cuda" / "kernels"


def measure_as_planned(simt: ModuleType, problem: cases.Problem) -> dict[str, audit.Summary]:
    plan = audit.plan_of(problem)
    summaries = audit.measure(simt, problem)
    for direction, summary in summaries.items():
        differs = audit.differences(summary, getattr(plan, direction))
        assert not differs, f"{direction}: (counted, stated by the plan): {differs}"
    return summaries


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", cases.SHAPES)
def test_the_plan_states_the_bytes(
    simt: ModuleType, shape: str, layout: str, dtype: torch.dtype
) -> None:
    measure_as_planned(simt, cases.make_problem(cases.SHAPES[shape], dtype, layout, bias=True))


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_misaligned_storage(simt: ModuleType, dtype: torch.dtype, layout: str) -> None:
    problem = cases.make_problem(cases.SHAPES["even"], dtype, layout, weight_dtype=torch.float32)
    for name in ("x", "dy"):
        tensor = getattr(problem, name)
        moved = torch.empty(tensor.numel() + 1, dtype=dtype)[1:]
        moved = moved.as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)
        setattr(problem, name, moved)
    assert audit.plan_of(problem).vec == 1
    measure_as_planned(simt, problem)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("workload", workloads(), ids=lambda row: row.name)
def test_workload_is_within_the_limits_of_its_strategy(
    simt: ModuleType, workload: Workload, layout: str
) -> None:
    """Strategy S: x is read once by the squeeze and once by the scale, y is written once; backward,
    dy is read twice, x once, dx written once. Whole planes, one sample.
    """
    problem = audit.problem_of(workload, layout)
    x = problem.x.nbytes
    plan = audit.plan_of(problem)
    planes = workload.channels * plan.splits
    # A vector on the border of two planes is read by both, by different warps now and then.
    split_vectors = layout == "nchw" and workload.height * workload.width % plan.vec != 0
    border = 16 * planes if split_vectors else 0
    for direction, summary in measure_as_planned(simt, problem).items():
        tensors = 1 if direction == "forward" else 2
        assert (summary.x_first, summary.x_again, summary.x_written) == (tensors * x, x, x)
        assert summary.x_repeated <= tensors * border
        assert summary.x_repeated <= 0.05 * x
        assert summary.efficiency >= 0.95
        assert summary.bank_conflicts == 0
        stated = getattr(plan, direction)
        biases = 4 * (workload.channels + workload.reduced)
        assert summary.distance <= stated.read + stated.written + biases


def test_kernels_reach_global_memory_through_vec_only() -> None:
    """No kernel dereferences a pointer of its parameters: the harness would not see it."""
    direct = re.compile(r"reinterpret_cast|\b(?:p|stage|params)(?:\.\w+)+\[|[=(,]\s*\*\w")
    for file in KERNELS.glob("*.cuh"):
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            assert not direct.search(line.split("//")[0]), f"{file.name}:{number}: {line}"
