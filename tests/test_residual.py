"""The tail of a residual block, y = relu(x * gate + residual): numbers, the mask that the backward
reads, strides.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from seblock_cuda import _ops, squeeze_excitation
from tests import cases
from tests.test_layout import VIEWS
from tests.test_nonfinite import VALUES
from tests.test_op import check, run

TAIL_CODES = {"add": 1, "add_relu": 2}
OP = torch.ops.seblock_cuda


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("tail", cases.TAILS)
@pytest.mark.parametrize("shape", cases.SHAPES)
def test_shapes(shape: str, tail: str, layout: str, dtype: torch.dtype, device: str) -> None:
    check(cases.make_problem(cases.SHAPES[shape], dtype, layout, tail=tail, device=device))


@pytest.mark.parametrize("tail", cases.TAILS)
@pytest.mark.parametrize("gate", ["sigmoid", "hardsigmoid", "relu"])
def test_gates_and_float32_weights(gate: str, tail: str, device: str) -> None:
    problem = cases.make_problem(
        (4, 24, (6, 5), 6),
        torch.bfloat16,
        weight_dtype=torch.float32,
        bias=True,
        gate=gate,
        activation="silu",
        tail=tail,
        device=device,
    )
    cases.check_no_worse_than_plain(run(problem), problem)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_large_results_past_the_cache(dtype: torch.dtype, layout: str, device: str) -> None:
    check(cases.make_problem((3, 75, (111, 113), 4), dtype, layout, tail="add_relu", device=device))


def forward_op(problem: cases.Problem, tail: str) -> tuple[Tensor, ...]:
    codes = (0, 0, TAIL_CODES[tail])
    return tuple(OP.se_forward(problem.x, *problem.parameters, problem.residual, *codes))


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", cases.SHAPES)
def test_the_mask_is_a_bit_per_element(
    shape: str, layout: str, dtype: torch.dtype, device: str
) -> None:
    """Whether y's element is not <= 0, and no more bytes than it takes."""
    problem = cases.make_problem(cases.SHAPES[shape], dtype, layout, tail="add_relu", device=device)
    y, *saved, mask = forward_op(problem, "add_relu")
    assert mask.numel() == _ops.mask_bytes(problem.x)
    assert torch.equal(_ops.unpack_mask(mask, problem.x), ~(y <= 0))

    weights = problem.parameters[:2]
    dresidual = OP.se_backward(problem.dy, problem.x, *weights, *saved, mask, True, True, 0, 0, 2)[
        -1
    ]
    assert dresidual.stride() == problem.x.stride()
    assert torch.equal(dresidual, torch.where(y <= 0, 0, problem.dy))


@pytest.mark.parametrize("biases", [(False, False), (True, False), (False, True)])
def test_what_is_not_needed_is_not_there(biases: tuple[bool, bool], device: str) -> None:
    """No mask and no gradient of the residual without a ReLU, no gradient of a bias unasked."""
    problem = cases.make_problem(cases.SHAPES["even"], tail="add", bias=True, device=device)
    *saved, mask = forward_op(problem, "add")[1:]
    assert mask is None
    weights = problem.parameters[:2]
    given = (problem.dy, problem.x, *weights, *saved, None)
    *_, dreduce_bias, dexpand_bias, dresidual = OP.se_backward(*given, *biases, 0, 0, 1)
    assert (dreduce_bias is not None, dexpand_bias is not None) == biases
    assert dresidual is None


def test_signed_zeros_and_ties(device: str) -> None:
    """y = 0 exactly: nothing passes, as in PyTorch's own ReLU."""
    x = torch.ones(2, 4, 3, 3, device=device)
    weights = [torch.zeros(1, 4, device=device), torch.zeros(4, 1, device=device)]  # gate 0.5
    for value in (-0.5, -0.0):
        residual = torch.full_like(x, value).requires_grad_()
        given = x * (value != 0)
        y = squeeze_excitation(given, *weights, residual=residual, residual_activation="relu")
        assert torch.equal(y, torch.zeros_like(y))
        (dresidual,) = torch.autograd.grad(y.sum(), residual)
        assert torch.equal(dresidual, torch.zeros_like(x))


@pytest.mark.parametrize("tail", cases.TAILS)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("view", VIEWS)
def test_views_of_the_residual(view: str, layout: str, tail: str, device: str) -> None:
    """Any strides give the bits of a dense residual, and so does the other layout."""
    base = cases.make_problem((4, 24, (6, 8), 3), layout=layout, tail=tail, device=device)
    residual = VIEWS[view](base.residual)
    problem = cases.make_problem(
        (residual.shape[0], residual.shape[1], tuple(residual.shape[2:]), 3),
        layout=layout,
        tail=tail,
        device=device,
    )
    problem.residual = cases.in_layout(residual, layout)
    expected = run(problem)
    for same in (residual, residual.contiguous(), cases.in_layout(residual, "nhwc")):
        problem.residual = same
        for name, tensor in run(problem).items():
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", ["even", "primes", "3-D", "several splits"])
def test_not_on_a_16_byte_boundary(
    shape: str, layout: str, dtype: torch.dtype, device: str
) -> None:
    problem = cases.make_problem(cases.SHAPES[shape], dtype, layout, tail="add_relu", device=device)
    expected = run(problem)

    def shifted(tensor: Tensor) -> Tensor:
        room = tensor.new_empty(tensor.numel() + 1)
        return room[1:].as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)

    for names in (["x"], ["residual"], ["dy"], ["x", "residual", "dy"]):
        moved = copy.copy(problem)
        for name in names:
            setattr(moved, name, shifted(getattr(problem, name)))
        results = run(moved)
        cases.check_no_worse_than_plain(results, problem)
        for name in ("y", "dx") if device == "cpu" else ():
            assert torch.equal(results[name], expected[name]), name


@pytest.mark.parametrize("tail", cases.TAILS)
def test_threads_and_repeats(tail: str) -> None:
    """Samples share bytes of the mask here: threads must not lose each other's bits."""
    problem = cases.make_problem((17, 31, (13, 41), 5), tail=tail)
    threads = torch.get_num_threads()
    expected = run(problem)
    try:
        for count in (1, 2, 5, 8):
            torch.set_num_threads(count)
            for name, tensor in run(problem).items():
                assert torch.equal(tensor, expected[name]), name
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("place", ["x", "dy", "residual", "expand_bias"])
@pytest.mark.parametrize("tail", cases.TAILS)
def test_nan_and_inf(tail: str, place: str, value: str, layout: str, device: str) -> None:
    """They come out where PyTorch's own operations have them: the ReLU passes NaN."""
    problem = cases.make_problem(
        (3, 16, (5, 7), 4), layout=layout, bias=True, tail=tail, device=device
    )
    tensor = getattr(problem, place)
    tensor[(0,) * tensor.dim()] = VALUES[value]
    leaves = [problem.x, *problem.parameters, problem.residual]
    inputs = [leaf.detach().requires_grad_() for leaf in leaves if leaf is not None]
    expected = squeeze_excitation(*inputs[:-1]) + inputs[-1]
    if tail == "add_relu":
        expected = torch.relu(expected)
    gradients = torch.autograd.grad(expected, inputs, problem.dy)
    for actual, plain in zip(run(problem).values(), (expected, *gradients)):
        assert torch.equal(actual.isnan(), plain.isnan())
        assert torch.equal(actual.isinf(), plain.isinf())
        assert torch.equal(actual[actual.isinf()], plain[plain.isinf()])


@pytest.mark.parametrize("tail", cases.TAILS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_opcheck(layout: str, dtype: torch.dtype, tail: str, device: str) -> None:
    problem = cases.make_problem(
        cases.SHAPES["primes"], dtype, layout, bias=True, tail=tail, device=device
    )
    codes = (1, 0, TAIL_CODES[tail])
    given = (problem.x, *problem.parameters, problem.residual)
    torch.library.opcheck(OP.se_forward, (*given, *codes))
    saved = forward_op(problem, tail)[1:]
    weights = problem.parameters[:2]
    torch.library.opcheck(
        OP.se_backward, (problem.dy, problem.x, *weights, *saved, False, True, *codes)
    )
