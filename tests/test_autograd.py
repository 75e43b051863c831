"""First and second derivatives, and the transforms of torch.func: checked by finite differences in
float64.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from seblock_cuda import SEBlock, reference, squeeze_excitation
from tests import cases


def inputs(layout: str = "nchw", bias: bool = True, device: str = "cpu") -> list[torch.Tensor]:
    problem = cases.make_problem((2, 5, (3, 2), 3), torch.float64, layout, bias=bias, device=device)
    given = [problem.x, *(p for p in problem.parameters if p is not None)]
    return [tensor.requires_grad_() for tensor in given]


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("gate", reference.GATES)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_first_derivatives(activation: str, gate: str, layout: str, device: str) -> None:
    function = partial(squeeze_excitation, activation=activation, gate=gate)
    assert gradcheck(function, inputs(layout, device=device))


@pytest.mark.parametrize("gate", ["sigmoid", "hardsigmoid"])
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_second_derivatives(activation: str, gate: str, device: str) -> None:
    function = partial(squeeze_excitation, activation=activation, gate=gate)
    assert gradgradcheck(function, inputs(device=device))


def test_reference_backward_is_its_forward_s_derivative() -> None:
    """The explicit formulas against autograd of the same file, for every activation and gate."""
    for activation in reference.ACTIVATIONS:
        for gate in reference.GATES:
            given = inputs()
            y = reference.forward(*given, activation, gate)
            dy = torch.randn_like(y)
            explicit = reference.backward(dy, *given, activation, gate)
            # PyTorch's own derivative of hardsigmoid holds 1/6 in float32, in any dtype
            tolerance = 1e-7 if gate == "hardsigmoid" else 1e-13
            for ours, theirs in zip(explicit, torch.autograd.grad(y, given, dy)):
                assert torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_gradient_penalty(device: str) -> None:
    """The usual user of a double backward: the gradient's norm as a loss."""
    block = SEBlock(12, 1 / 3, device=device)
    x = torch.randn(3, 12, 4, 4, device=device, requires_grad=True)

    def penalty(function: object) -> list[torch.Tensor]:
        y = function(x, block.reduce.weight, block.expand.weight)  # type: ignore[operator]
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return list(torch.autograd.grad(dx.square().sum(), [x, *block.parameters()]))

    for fused, plain in zip(penalty(squeeze_excitation), penalty(reference.forward)):
        assert torch.allclose(fused, plain, rtol=1e-4, atol=1e-5)


def test_func_grad_and_jacobian(device: str) -> None:
    given = [tensor.detach() for tensor in inputs(device=device)]

    def loss(*arguments: torch.Tensor) -> torch.Tensor:
        return squeeze_excitation(*arguments).square().sum()

    leaves = [tensor.clone().requires_grad_() for tensor in given]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    actual = torch.func.grad(loss, argnums=tuple(range(5)))(*given)
    for ours, theirs in zip(actual, expected):
        assert torch.allclose(ours, theirs)
    x, rest = given[0], given[1:]
    hessian = torch.func.hessian(lambda x: loss(x, *rest))(x)
    plain = torch.func.hessian(lambda x: reference.forward(x, *rest).square().sum())(x)
    assert torch.allclose(hessian, plain)


def test_func_vmap(device: str) -> None:
    given = [tensor.detach() for tensor in inputs(device=device)]
    stack = torch.randn(4, *given[0].shape, dtype=torch.float64, device=device)
    together = torch.func.vmap(lambda x: squeeze_excitation(x, *given[1:]))(stack)
    for x, y in zip(stack, together):
        assert torch.allclose(squeeze_excitation(x, *given[1:]), y)


def test_per_sample_gradients(device: str) -> None:
    block = SEBlock(8, 1 / 2, device=device, dtype=torch.float64)
    x = torch.randn(3, 8, 3, 3, device=device, dtype=torch.float64)
    parameters = dict(block.named_parameters())

    def loss(parameters: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(block, parameters, sample[None]).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for n in range(3):
        block.zero_grad()
        block(x[n : n + 1]).square().sum().backward()
        for name, parameter in block.named_parameters():
            assert torch.allclose(each[name][n], parameter.grad)


def test_a_tangent_is_never_dropped(device: str) -> None:
    given = [tensor.detach() for tensor in inputs(device=device)]
    tangent = torch.randn_like(given[0])
    _, expected = torch.func.jvp(
        lambda x: reference.forward(x, *given[1:]), (given[0],), (tangent,)
    )
    _, actual = torch.func.jvp(lambda x: squeeze_excitation(x, *given[1:]), (given[0],), (tangent,))
    assert torch.allclose(actual, expected)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(given[0], tangent)
        y = squeeze_excitation(dual, *given[1:])
        assert torch.allclose(forward_ad.unpack_dual(y).tangent, expected)
