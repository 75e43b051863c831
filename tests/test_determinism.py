"""The same input gives the same bits: every run, every thread count, whatever the rest of the
batch.
"""

from __future__ import annotations

import pytest
import torch

from seblock_cuda import squeeze_excitation
from tests import cases

SHAPES = [(9, 40, (13, 11), 5), (2, 64, (56, 56), 4), (1, 512, (7, 7), 32), (5, 24, (40, 40), 6)]


def run(problem: cases.Problem) -> list[torch.Tensor]:
    inputs = [tensor.detach().requires_grad_() for tensor in (problem.x, *problem.parameters[:2])]
    y = squeeze_excitation(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, problem.dy)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_threads_and_repeats(shape: tuple, layout: str, dtype: torch.dtype) -> None:
    problem = cases.make_problem(shape, dtype, layout)
    threads = torch.get_num_threads()
    expected = run(problem)
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            for actual, before in zip(run(problem), expected):
                assert torch.equal(actual, before)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_sample_does_not_depend_on_its_batch(shape: tuple, layout: str, device: str) -> None:
    whole = cases.make_problem(shape, layout=layout, device=device)
    y, dx, *_ = run(whole)
    for n in range(shape[0]):
        part = cases.make_problem(shape, layout=layout, device=device)
        part.x, part.dy = (cases.in_layout(t[n : n + 1], layout) for t in (whole.x, whole.dy))
        y_part, dx_part, *_ = run(part)
        assert torch.equal(y_part, y[n : n + 1])
        assert torch.equal(dx_part, dx[n : n + 1])


def test_deterministic_mode_accepts_the_op(device: str) -> None:
    problem = cases.make_problem(SHAPES[0], device=device)
    expected = run(problem)
    torch.use_deterministic_algorithms(True)
    try:
        for actual, before in zip(run(problem), expected):
            assert torch.equal(actual, before)
    finally:
        torch.use_deterministic_algorithms(False)
