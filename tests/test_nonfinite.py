"""NaN and Inf come out exactly where plain PyTorch has them. A ReLU that swallows NaN is the
classic mistake.
"""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from seblock_cuda import reference, squeeze_excitation
from tests import cases
from tests.simt import kernels

VALUES = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
PLACES = ["x", "dy", "reduce_weight", "expand_weight", "reduce_bias", "expand_bias"]


def poisoned(
    place: str, value: str, layout: str, dtype: torch.dtype, **names: str
) -> cases.Problem:
    problem = cases.make_problem((3, 16, (5, 7), 4), dtype, layout, bias=True, **names)
    tensor = getattr(problem, place)
    tensor[(0,) * tensor.dim()] = VALUES[value]
    return problem


def plain(problem: cases.Problem) -> dict[str, torch.Tensor]:
    """y and all gradients by PyTorch's own operations and derivatives."""
    inputs = [tensor.detach().requires_grad_() for tensor in (problem.x, *problem.parameters)]
    y = reference.forward(*inputs, *problem.names, acc_dtype=problem.x.dtype)
    return cases.named(y.detach(), reference.Gradients(*torch.autograd.grad(y, inputs, problem.dy)))


def check(actual: dict[str, torch.Tensor], problem: cases.Problem) -> None:
    for name, expected in plain(problem).items():
        assert torch.equal(actual[name].isnan(), expected.isnan()), name
        infinite = expected.isinf()
        assert torch.equal(actual[name].isinf(), infinite), name
        assert torch.equal(actual[name][infinite], expected[infinite]), name


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("place", PLACES)
def test_where_plain_pytorch_has_them(
    place: str, value: str, dtype: torch.dtype, layout: str, device: str
) -> None:
    problem = poisoned(place, value, layout, dtype)
    inputs = [
        tensor.to(device).requires_grad_()
        for tensor in (problem.x, *problem.parameters)
        if tensor is not None
    ]
    y = squeeze_excitation(*inputs)
    gradients = torch.autograd.grad(y, inputs, problem.dy.to(device))
    results = cases.named(y, reference.Gradients(*gradients))
    check({name: tensor.detach().cpu() for name, tensor in results.items()}, problem)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("gate", reference.GATES)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activations_and_gates(activation: str, gate: str, value: str) -> None:
    if activation == "gelu" and value == "inf":
        pytest.skip(
            "PyTorch's vectorised gelu(inf) is NaN on some CPUs and inf elsewhere; ours is inf"
        )
    problem = poisoned(
        "reduce_bias", value, "nchw", torch.float32, activation=activation, gate=gate
    )
    inputs = [
        tensor.requires_grad_() for tensor in (problem.x, *problem.parameters) if tensor is not None
    ]
    y = squeeze_excitation(*inputs, activation=activation, gate=gate)
    gradients = torch.autograd.grad(y, inputs, problem.dy)
    check(cases.named(y.detach(), reference.Gradients(*gradients)), problem)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("place", PLACES)
def test_the_cuda_kernels(simt: ModuleType, place: str, value: str, layout: str) -> None:
    """The same on the SIMT harness, with every activation and gate in turn."""
    for activation in ("relu", "silu", "hardswish", "leaky_relu"):
        for gate in reference.GATES:
            problem = poisoned(
                place, value, layout, torch.float32, activation=activation, gate=gate
            )
            for strategy in kernels.STRATEGIES:
                try:
                    run = kernels.run(simt, problem, strategy=strategy)
                except ValueError:  # the strategy cannot run the problem
                    assert strategy != "split"
                    continue
                check(cases.named(run.y, run.gradients), problem)


@pytest.mark.parametrize("dtype", cases.LOW_PRECISION, ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_the_whole_range_of_the_dtype(layout: str, dtype: torch.dtype, device: str) -> None:
    """Every finite value, subnormals and the largest included, through a gate of one half and
    of one.
    """
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype)
    values = values[values.isfinite()].reshape(-1, 64)
    # each plane holds a value and its negative: the mean is zero and never overflows
    x = cases.in_layout(torch.stack([values, -values], dim=2).to(device), layout)
    zeros = [torch.zeros(1, x.shape[1], device=device), torch.zeros(x.shape[1], 1, device=device)]
    for bias, factor in ((0.0, 0.5), (100.0, 1.0)):
        gate_bias = torch.full((x.shape[1],), bias, device=device)
        y = squeeze_excitation(x, *zeros, None, gate_bias)
        assert torch.equal(y, (x.float() * factor).to(dtype))
