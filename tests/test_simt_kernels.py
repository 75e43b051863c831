"""The CUDA kernels compute the layer: their own source on the SIMT harness, against float64."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from seblock_cuda.reference import ACTIVATIONS, GATES
from tests import cases
from tests.simt import audit, guards, kernels

# What the kernels divide: samples in several groups, tiles and chunks of the products, strips that
# share a sum, planes in several chunks, small planes in several rounds.
DIVIDED = [
    (11, 64, (7, 7), 130),
    (3, 64, (24, 40), 8),
    (2, 48, (31, 33), 6),
    (1, 1032, (3, 3), 9),
    (1, 8, (120, 120), 4),
    (3, 8, (2, 2), 3),
]
# The most samples and channels, the largest plane, the least of everything.
EXTREMES = [(4096, 8, (2, 2), 2), (1, 8192, (2, 2), 16), (1, 8, (512, 512), 2), (1, 1, (1, 1), 1)]


def check(simt: ModuleType, problem: cases.Problem, strategy: str = "split") -> kernels.Run:
    run = kernels.run(simt, problem, strategy=strategy)
    cases.check_no_worse_than_plain(cases.named(run.y, run.gradients), problem)
    return run


def planned(problem: cases.Problem, strategy: str) -> None:
    """Skips, visibly, what the strategy cannot run."""
    try:
        audit.plans_of(problem, strategy)
    except ValueError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("tail", [None, *cases.TAILS])
@pytest.mark.parametrize("strategy", kernels.STRATEGIES)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", cases.SHAPES)
def test_shapes(
    simt: ModuleType, shape: str, layout: str, dtype: torch.dtype, strategy: str, tail: str | None
) -> None:
    if dtype == torch.float64 and strategy != "split":
        pytest.skip("float64 is left to strategy split")
    problem = cases.make_problem(cases.SHAPES[shape], dtype, layout, tail=tail)
    planned(problem, strategy)
    check(simt, problem, strategy)


@pytest.mark.parametrize("tail", [None, "add_relu"])
@pytest.mark.parametrize("strategy", kernels.STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", DIVIDED, ids=str)
def test_what_is_divided(
    simt: ModuleType,
    shape: tuple[int, int, tuple[int, ...], int],
    layout: str,
    dtype: torch.dtype,
    strategy: str,
    tail: str | None,
) -> None:
    problem = cases.make_problem(
        shape, dtype, layout, weight_dtype=torch.float32, bias=True, tail=tail
    )
    planned(problem, strategy)
    check(simt, problem, strategy)


@pytest.mark.parametrize("strategy", kernels.STRATEGIES)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", EXTREMES, ids=str)
def test_extreme_shapes(
    simt: ModuleType, shape: tuple[int, int, tuple[int, ...], int], layout: str, strategy: str
) -> None:
    problem = cases.make_problem(shape, torch.bfloat16, layout, bias=True, tail="add_relu")
    planned(problem, strategy)
    check(simt, problem, strategy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_float32_weights(simt: ModuleType, dtype: torch.dtype) -> None:
    problem = cases.make_problem(
        cases.SHAPES["primes"], dtype, weight_dtype=torch.float32, bias=True
    )
    check(simt, problem)


@pytest.mark.parametrize("strategy", kernels.STRATEGIES)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_gates(simt: ModuleType, activation: str, gate: str, strategy: str) -> None:
    shape = (4, 16, (3, 5), 6)
    problem = cases.make_problem(shape, bias=True, activation=activation, gate=gate)
    check(simt, problem, strategy)


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


@pytest.mark.parametrize("strategy", kernels.STRATEGIES)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("workload", cases.workloads(), ids=lambda row: row.name)
def test_workloads(simt: ModuleType, workload: cases.Workload, layout: str, strategy: str) -> None:
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
    planned(problem, strategy)
    check(simt, problem, strategy)


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


@pytest.mark.parametrize("strategy", ["stream", "resident"])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", DIVIDED[:3], ids=str)
def test_any_schedule_of_tickets(
    simt: ModuleType,
    shape: tuple[int, int, tuple[int, ...], int],
    layout: str,
    strategy: str,
) -> None:
    """The same where blocks wait for each other; with one resident block, none waits forever."""
    problem = cases.make_problem(
        shape, torch.bfloat16, layout, weight_dtype=torch.float32, bias=True, tail="add_relu"
    )
    planned(problem, strategy)
    assert guards.schedules(simt, problem, strategy=strategy) == ""
