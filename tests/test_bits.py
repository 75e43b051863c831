"""A sample's bits follow from C, S, R, the layout and the dtypes: the same for every batch, group,
driver, lag, number of blocks and address. The kernels' own source, on the SIMT harness.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from seblock_cuda import _core
from tests import cases
from tests.simt import audit, kernels

Shape = tuple[int, int, tuple[int, ...], int]

SHAPES: list[Shape] = [
    (9, 72, (7, 7), 5),  # small planes; two columns of nhwc, the last one narrow
    (9, 16, (14, 14), 40),  # planes of one chunk; two tiles of the first product
    (3, 8, (31, 33), 20),  # planes of several chunks
    (2, 8, (96, 96), 3),  # sums in several parts
    (9, 24, (2, 3), 9),  # planes smaller than a vector
    (9, 48, (1, 1), 17),
]
# Each pair has code of its own for the weights.
DTYPES = [
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float32),
]
OF_A_SAMPLE = ("y", "pooled", "z1", "gate", "mask", "dx", "dresidual")


def results(run: kernels.Run) -> dict[str, Tensor]:
    """What a sample has of its own, [N, ...]."""
    named = kernels.named(run)
    n = run.y.shape[0]
    return {
        name: named[name].reshape(n, -1) if name == "mask" else named[name]
        for name in OF_A_SAMPLE
        if name in named
    }


def others(n: int) -> Iterator[tuple[str, kernels.Forced]]:
    """The ways to run the same problem: strategy, and what is forced."""
    for group in (1, 2, 3, 8):
        yield "split", kernels.Forced(group=group)
    for lag, blocks in ((1, 1), (2, 3), (n, 8)):
        yield "stream", kernels.Forced(lag=min(lag, n), blocks=blocks)
    yield "resident", kernels.AS_PLANNED


def same(actual: dict[str, Tensor], expected: dict[str, Tensor], what: object) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert torch.equal(tensor, expected[name]), f"{what}: other bits in {name}"


def samples(problem: cases.Problem, begin: int, end: int) -> cases.Problem:
    """The problem with these samples only, in storage of their own."""
    layout = cases.LAYOUTS[kernels.layout_of(problem.x)]
    part = {
        name: cases.in_layout(tensor[begin:end].clone(), layout)
        for name in ("x", "dy", "residual")
        if (tensor := getattr(problem, name)) is not None
    }
    return dataclasses.replace(problem, **part)


def moved(problem: cases.Problem) -> cases.Problem:
    """The problem with x, dy and the residual one element into their storage."""
    part = {}
    for name in ("x", "dy", "residual"):
        tensor = getattr(problem, name)
        if tensor is None:
            continue
        storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:]
        part[name] = storage.as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)
    return dataclasses.replace(problem, **part)


@pytest.fixture(params=DTYPES, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def dtypes(request: pytest.FixtureRequest) -> tuple[torch.dtype, torch.dtype]:
    pair: tuple[torch.dtype, torch.dtype] = request.param
    return pair


@pytest.mark.parametrize("tail", [None, "add_relu"])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_bits(
    simt: ModuleType,
    shape: Shape,
    layout: str,
    tail: str | None,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> None:
    dtype, weights = dtypes
    problem = cases.make_problem(shape, dtype, layout, weight_dtype=weights, bias=True, tail=tail)
    n = shape[0]
    expected = results(kernels.run(simt, problem))
    drivers = set()
    for strategy, forced in others(n):
        if not plans(problem, strategy, forced):
            continue  # a sample does not fit in shared memory
        drivers.add(strategy)
        run = kernels.run(simt, problem, strategy=strategy, forced=forced)
        same(results(run), expected, (strategy, forced))
    whole = problem.x.shape[2:].numel() * problem.x[0, 0].element_size() >= 16 or layout == "nhwc"
    assert {"split", "stream"} <= drivers or not whole

    # Fewer samples, at other places of the batch.
    for begin, end in ((0, 1), (n - 1, n), (n // 2, n)):
        part = samples(problem, begin, end)
        rows = {name: tensor[begin:end] for name, tensor in expected.items()}
        for strategy in sorted(drivers):
            run = kernels.run(simt, part, strategy=strategy)
            same(results(run), rows, (strategy, begin, end))

    # Another address: single elements, same lanes.
    assert not any(plan.vectors for plan in plans(moved(problem), "split"))
    same(results(kernels.run(simt, moved(problem))), expected, "moved by one element")


def plans(
    problem: cases.Problem, strategy: str, forced: kernels.Forced = kernels.AS_PLANNED
) -> list[_core.Plan]:
    """Of both directions; none if the strategy cannot run the problem."""
    try:
        return list(audit.plans_of(problem, strategy, forced).values())
    except ValueError:
        return []
