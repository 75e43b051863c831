"""The CUDA kernels compute the layer: their own source on the SIMT harness, against float64."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from seblock_cuda.reference import ACTIVATIONS, GATES
from tests import cases
from tests.simt import guards, kernels


def check(simt: ModuleType, problem: cases.Problem) -> kernels.Run:
    run = kernels.run(simt, problem.dy, problem.x, *problem.parameters, *problem.names)
    cases.check_no_worse_than_plain(cases.named(run.y, run.gradients), problem)
    return run


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", cases.SHAPES)
def test_shapes(simt: ModuleType, shape: str, layout: str, dtype: torch.dtype) -> None:
    check(simt, cases.make_problem(cases.SHAPES[shape], dtype, layout))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_float32_weights(simt: ModuleType, dtype: torch.dtype) -> None:
    problem = cases.make_problem(
        cases.SHAPES["primes"], dtype, weight_dtype=torch.float32, bias=True
    )
    check(simt, problem)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_gates(simt: ModuleType, activation: str, gate: str) -> None:
    shape = (4, 16, (3, 5), 6)
    check(simt, cases.make_problem(shape, bias=True, activation=activation, gate=gate))


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_misaligned_storage(simt: ModuleType, dtype: torch.dtype, layout: str) -> None:
    """x and dy start one element into their storage: no 16-byte access is possible."""
    problem = cases.make_problem(cases.SHAPES["even"], dtype, layout)
    for name in ("x", "dy"):
        tensor = getattr(problem, name)
        moved = torch.empty(tensor.numel() + 1, dtype=dtype)[1:].as_strided(
            tensor.shape, tensor.stride(), 1
        )
        setattr(problem, name, moved.copy_(tensor))
    assert problem.x.data_ptr() % 16
    check(simt, problem)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("workload", cases.workloads(), ids=lambda row: row.name)
def test_workloads(simt: ModuleType, workload: cases.Workload, layout: str) -> None:
    """Every row of the workload table: its channels and squeeze, on a plane cut to a few
    positions.
    """
    spatial = (min(workload.height, 5), min(workload.width, 7))
    problem = cases.workload_problem(
        workload,
        torch.bfloat16,
        layout,
        samples=1,
        spatial=spatial,
        weight_dtype=torch.float32,
    )
    check(simt, problem)


def test_a_sample_does_not_depend_on_its_batch(simt: ModuleType) -> None:
    whole = cases.make_problem((9, 24, (6, 7), 3))
    y = check(simt, whole).y
    for n in (0, 4, 8):
        part = cases.make_problem((9, 24, (6, 7), 3))
        part.x, part.dy = whole.x[n : n + 1].clone(), whole.dy[n : n + 1].clone()
        assert torch.equal(check(simt, part).y, y[n : n + 1])


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize(
    "shape", [(3, 24, (9, 9), 5), (1, 8, (65, 64), 2), (9, 40, (3, 5), 9)], ids=str
)
def test_any_schedule_gives_the_same_bits(
    simt: ModuleType, shape: tuple[int, int, tuple[int, ...], int], layout: str, dtype: torch.dtype
) -> None:
    """Random order of threads and blocks, one to three resident blocks, 20 seeds."""
    problem = cases.make_problem(shape, dtype, layout, bias=True)
    assert guards.schedules(simt, problem) == ""
