"""What autograd, the compiler and modules make of the residual tail."""

from __future__ import annotations

import copy
import io
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from seblock_cuda import SEBlock, SEResidual, squeeze_excitation
from tests import cases
from tests.test_op import run


@pytest.mark.parametrize("tail", cases.TAILS)
@pytest.mark.parametrize("place", ["x", "reduce_weight", "residual"])
def test_one_gradient_at_a_time(place: str, tail: str, device: str) -> None:
    problem = cases.make_problem(cases.SHAPES["primes"], tail=tail, device=device)
    expected = run(problem)[f"d{place}"]
    leaf = getattr(problem, place).requires_grad_()
    y = squeeze_excitation(problem.x, *problem.parameters, **problem.tail)
    assert torch.equal(torch.autograd.grad(y, leaf, problem.dy)[0], expected)


@pytest.mark.parametrize("tail", cases.TAILS)
def test_the_residual_is_the_input(tail: str, device: str) -> None:
    problem = cases.make_problem(cases.SHAPES["even"], tail=tail, device=device)
    problem.residual = problem.x
    expected = run(problem)
    x = problem.x.detach().requires_grad_()
    problem.residual = x
    y = squeeze_excitation(x, *problem.parameters, **problem.tail)
    assert torch.equal(y, expected["y"])
    (dx,) = torch.autograd.grad(y, x, problem.dy)
    assert torch.equal(dx, expected["dx"] + expected["dresidual"])


def test_neither_y_nor_the_residual_is_kept(device: str) -> None:
    """Both may be overwritten before the backward."""
    problem = cases.make_problem(cases.SHAPES["even"], tail="add_relu", device=device)
    expected = run(problem)
    x = problem.x.detach().requires_grad_()
    residual = problem.residual.clone()
    y = squeeze_excitation(x, *problem.parameters, residual=residual, residual_activation="relu")
    residual.zero_()
    with torch.no_grad():
        y.zero_()
    (dx,) = torch.autograd.grad(y, x, problem.dy)
    assert torch.equal(dx, expected["dx"])


def float64_inputs(device: str, layout: str = "nchw") -> list[Tensor]:
    problem = cases.make_problem(
        (2, 5, (3, 2), 3), torch.float64, layout, bias=True, tail="add", device=device
    )
    given = [problem.x, *problem.parameters, problem.residual]
    return [tensor.requires_grad_() for tensor in given if tensor is not None]


def with_tail(*given: Tensor, residual_activation: str | None) -> Tensor:
    return squeeze_excitation(
        *given[:-1], residual=given[-1], residual_activation=residual_activation
    )


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("residual_activation", cases.TAILS.values())
def test_derivatives(residual_activation: str | None, layout: str, device: str) -> None:
    function = partial(with_tail, residual_activation=residual_activation)
    assert gradcheck(function, float64_inputs(device, layout))
    assert gradgradcheck(function, float64_inputs(device, layout))


@pytest.mark.parametrize("residual_activation", cases.TAILS.values())
def test_transforms_of_torch_func(residual_activation: str | None, device: str) -> None:
    given = [tensor.detach() for tensor in float64_inputs(device)]

    def loss(*arguments: Tensor) -> Tensor:
        return with_tail(*arguments, residual_activation=residual_activation).square().sum()

    leaves = [tensor.clone().requires_grad_() for tensor in given]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    actual = torch.func.grad(loss, argnums=tuple(range(6)))(*given)
    for ours, theirs in zip(actual, expected):
        assert torch.allclose(ours, theirs)
    tangents = [torch.randn_like(tensor) for tensor in given]
    _, tangent = torch.func.jvp(loss, tuple(given), tuple(tangents))
    assert torch.allclose(tangent, sum((t * g).sum() for t, g in zip(tangents, expected)))
    stack = torch.randn(3, *given[-1].shape, dtype=torch.float64, device=device)
    together = torch.func.vmap(lambda residual: loss(*given[:-1], residual))(stack)
    assert torch.allclose(together, torch.stack([loss(*given[:-1], r) for r in stack]))


class Block(nn.Module):
    """A residual block as networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.se = SEResidual(16, 1 / 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.se(self.conv(x), x)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_training_step(backend: str, layout: str, device: str) -> None:
    torch.manual_seed(0)
    model = Block().to(device)

    def step(function: object, n: int) -> list[Tensor]:
        model.zero_grad()
        generator = torch.Generator().manual_seed(n)
        x = cases.in_layout(torch.randn(n, 16, 9, 9, generator=generator).to(device), layout)
        y = function(x.requires_grad_())  # type: ignore[operator]
        y.square().mean().backward()
        return [y.detach(), x.grad, *(p.grad.clone() for p in model.parameters())]

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for n in (4, 4, 7):  # the third with a dynamic batch
        for actual, expected in zip(step(compiled, n), step(model, n)):
            assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_the_layer(device: str) -> None:
    """SEResidual is SEBlock, then an addition and a ReLU; same weights and keys."""
    torch.manual_seed(0)
    layer = SEResidual(32, 1 / 4, device=device)
    block = SEBlock(32, 1 / 4, device=device)
    block.load_state_dict(layer.state_dict())
    x, shortcut = torch.randn(2, 3, 32, 5, 5, device=device).requires_grad_().unbind()
    y = layer(x, shortcut)
    plain = torch.relu(block(x) + shortcut)
    assert torch.allclose(y, plain, rtol=1e-6, atol=1e-6)
    dy = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, [x, shortcut], dy), torch.autograd.grad(plain, [x, shortcut], dy)
    ):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert "residual_activation=relu" in repr(layer)
    with pytest.raises(ValueError, match="residual must have input's shape"):
        layer(x, shortcut[:, :1])


def test_hooks_copies_and_checkpoints(device: str) -> None:
    layer = SEResidual(16, 1 / 4, device=device)
    seen: list[str] = []
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    x = torch.randn(2, 16, 5, 5, device=device, requires_grad=True)
    shortcut = torch.randn(2, 16, 5, 5, device=device, requires_grad=True)
    layer(x, shortcut).sum().backward()
    assert seen == ["forward", "backward"]
    gradients = [x.grad.clone(), shortcut.grad.clone()]

    again = copy.deepcopy(layer)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    again.load_state_dict(torch.load(buffer))
    x.grad = shortcut.grad = None
    y = torch.utils.checkpoint.checkpoint(again, x, shortcut, use_reentrant=False)
    y.sum().backward()
    assert torch.equal(x.grad, gradients[0]) and torch.equal(shortcut.grad, gradients[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(dtype: torch.dtype, device: str) -> None:
    problem = cases.make_problem(
        cases.SHAPES["even"], dtype, weight_dtype=torch.float32, tail="add_relu", device=device
    )
    expected = run(problem)
    with torch.autocast(device, torch.bfloat16):
        actual = run(problem)
    for name, tensor in actual.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name])


def test_a_device_without_kernels() -> None:
    problem = cases.make_problem(cases.SHAPES["even"], tail="add_relu", device="meta")
    y = squeeze_excitation(problem.x, *problem.parameters, **problem.tail)
    assert y.shape == problem.x.shape and y.is_meta
