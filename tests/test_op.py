"""The op computes the layer, forward and backward: against float64, no worse than plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from seblock_cuda import reference, squeeze_excitation
from tests import cases


def run(problem: cases.Problem) -> dict[str, torch.Tensor]:
    """y and all gradients through autograd."""
    leaves = [problem.x, *problem.parameters, problem.residual]
    inputs = [None if leaf is None else leaf.detach().requires_grad_() for leaf in leaves]
    y = squeeze_excitation(
        *inputs[:-1],
        activation=problem.activation,
        gate=problem.gate,
        residual=inputs[-1],
        residual_activation=problem.residual_activation,
    )
    given = [leaf for leaf in inputs if leaf is not None]
    gradients = iter(torch.autograd.grad(y, given, problem.dy))
    return cases.named(
        y.detach(),
        reference.Gradients(*(None if leaf is None else next(gradients) for leaf in inputs)),
    )


def check(problem: cases.Problem) -> None:
    results = run(problem)
    cases.check_no_worse_than_plain(results, problem)
    for name in ("y", "dx"):
        assert results[name].dtype == problem.x.dtype
        assert results[name].stride() == problem.x.stride()


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", cases.SHAPES)
def test_shapes(shape: str, layout: str, dtype: torch.dtype, device: str) -> None:
    check(cases.make_problem(cases.SHAPES[shape], dtype, layout, device=device))


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("gate", reference.GATES)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activations_and_gates(activation: str, gate: str, bias: bool, device: str) -> None:
    problem = cases.make_problem(
        (4, 24, (6, 5), 6), bias=bias, activation=activation, gate=gate, device=device
    )
    check(problem)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("dtype", [*cases.LOW_PRECISION, torch.float64], ids=str)
def test_float32_weights(dtype: torch.dtype, layout: str, device: str) -> None:
    problem = cases.make_problem(
        cases.SHAPES["primes"],
        dtype,
        layout,
        weight_dtype=torch.float32,
        bias=True,
        device=device,
    )
    results = run(problem)
    cases.check_no_worse_than_plain(results, problem)
    assert results["dreduce_weight"].dtype == torch.float32


@pytest.mark.parametrize("mixed", ["reduce_weight", "expand_weight", "expand_bias"])
def test_parameters_of_mixed_dtypes(mixed: str, device: str) -> None:
    problem = cases.make_problem(cases.SHAPES["even"], torch.bfloat16, bias=True, device=device)
    setattr(problem, mixed, getattr(problem, mixed).float())
    results = run(problem)
    cases.check_no_worse_than_plain(results, problem)
    assert results[f"d{mixed}"].dtype == torch.float32
    assert results["dreduce_bias"].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("workload", cases.workloads(), ids=lambda row: row.name)
def test_workloads(workload: cases.Workload, layout: str, dtype: torch.dtype, device: str) -> None:
    """Every row of the workload table in full size, with two samples."""
    problem = cases.workload_problem(workload, dtype, layout, samples=2, device=device)
    check(problem)


@pytest.mark.parametrize("tail", [(), (1,), (1, 1), (1, 1, 1)], ids=str)
def test_weights_with_trailing_ones(tail: tuple[int, ...], device: str) -> None:
    problem = cases.make_problem(cases.SHAPES["even"], device=device)
    expected = run(problem)
    problem.reduce_weight = problem.reduce_weight.reshape(*problem.reduce_weight.shape, *tail)
    problem.expand_weight = problem.expand_weight.reshape(*problem.expand_weight.shape, *tail)
    results = run(problem)
    assert results["dreduce_weight"].shape == problem.reduce_weight.shape
    assert results["dexpand_weight"].shape == problem.expand_weight.shape
    for name, tensor in expected.items():
        assert torch.equal(results[name].flatten(), tensor.flatten())


def test_strided_weights(device: str) -> None:
    problem = cases.make_problem(cases.SHAPES["even"], bias=True, device=device)
    expected = run(problem)
    problem.reduce_weight = problem.reduce_weight.t().contiguous().t()
    problem.expand_weight = problem.expand_weight.repeat(1, 2)[:, : problem.expand_weight.shape[1]]
    problem.expand_bias = problem.expand_bias.repeat_interleave(2)[::2]
    for name, tensor in run(problem).items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.gpu
def test_beyond_two_to_the_31_elements() -> None:
    """Indices need 64 bits: the first and the last samples are checked against their own small
    runs.
    """
    from seblock_cuda import _ops

    if reason := _ops.cuda_unusable_reason():
        pytest.skip(reason)
    n, c, side = 80, 128, 460
    assert n * c * side * side > 2**31
    x = torch.randn(n, c, side, side, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weights = [torch.randn(8, c, device="cuda") * 0.1, torch.randn(c, 8, device="cuda") * 0.1]
    y = squeeze_excitation(x, *weights)
    (dx,) = torch.autograd.grad(y, x, y.detach())
    for index in (0, n - 1):
        part = x.detach()[index : index + 1].clone().requires_grad_()
        expected = squeeze_excitation(part, *weights)
        assert torch.equal(y[index : index + 1], expected)
        (gradient,) = torch.autograd.grad(expected, part, expected.detach())
        assert torch.equal(dx[index : index + 1], gradient)
