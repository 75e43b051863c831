"""What calls the op itself is trained: programs of torch.export, traces, compiled graphs."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx

from seblock_cuda import squeeze_excitation
from tests import cases
from tests.models import check_same, results
from tests.test_ecosystem import X, network

OP = torch.ops.seblock_cuda
TAIL_CODES = {None: 0, "add": 1, "add_relu": 2}
needs_tails = pytest.mark.parametrize("tail", TAIL_CODES)


def leaves(tail: str | None, device: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    problem = cases.make_problem((2, 5, (3, 2), 3), dtype, bias=True, tail=tail, device=device)
    given = (problem.x, *problem.parameters, problem.residual)
    return [tensor.requires_grad_() for tensor in given if tensor is not None]


def op(*given: Tensor, tail: str | None) -> Tensor:
    """A call as graphs have it."""
    tensors = given if len(given) == 6 else (*given, None)
    y: Tensor = OP.se_forward(*tensors, 1, 0, TAIL_CODES[tail])[0]
    return y


def function(*given: Tensor, tail: str | None) -> Tensor:
    residual = given[5] if tail else None
    how = {"residual": residual, "residual_activation": cases.TAILS[tail]} if tail else {}
    return squeeze_excitation(*given[:5], activation="silu", **how)


def has_the_op(graph: torch.fx.Graph) -> bool:
    return any("se_forward" in str(node.target) for node in graph.nodes)


def gradients(f: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    weight = torch.linspace(-1, 1, given[0].numel(), device=given[0].device).view_as(given[0])
    return list(torch.autograd.grad((f(*given) * weight).sum(), given))


@pytest.mark.parametrize("saved", [False, True], ids=["in memory", "saved"])
@pytest.mark.parametrize("training", [True, False])
def test_exported_programs(training: bool, saved: bool) -> None:
    model = network().train(training)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (X,), dynamic_shapes=({0: batch},))
    assert has_the_op(program.graph)
    if saved:
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        buffer.seek(0)
        program = torch.export.load(buffer)
    expected = results(model, X[:3])
    actual = results(program.module(), X[:3])
    assert actual.keys() == expected.keys() > {name for name, _ in model.named_parameters()}
    check_same(actual, expected, 1e-5)


def test_exported_under_no_grad() -> None:
    model = network()
    with torch.no_grad():
        program = torch.export.export(model, (X,))
    check_same(results(program.module(), X), results(model, X), 1e-5)


@needs_tails
def test_a_trace_under_no_grad(tail: str | None, device: str) -> None:
    given = leaves(tail, device)
    with torch.no_grad():
        traced = make_fx(lambda *given: function(*given, tail=tail))(*given)
    assert has_the_op(traced.graph)
    actual = gradients(traced, given)
    expected = gradients(lambda *given: function(*given, tail=tail), given)
    for ours, theirs in zip(actual, expected):
        assert torch.equal(ours, theirs)


@needs_tails
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_calls_of_the_op(backend: str, tail: str | None, device: str) -> None:
    given = leaves(tail, device)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *given: op(*given, tail=tail), fullgraph=True, backend=backend, dynamic=True
    )
    expected = gradients(lambda *given: function(*given, tail=tail), given)
    for ours, theirs in zip(gradients(compiled, given), expected):
        assert torch.allclose(ours, theirs)


def test_a_compiled_program() -> None:
    model = network()
    torch._dynamo.reset()
    program = torch.compile(torch.export.export(model, (X,)).module(), backend="aot_eager")
    expected = {name: value for name, value in results(model, X).items() if name in ("x", "y")}
    actual = results(model, X, lambda _, x: program(x))
    check_same({name: actual[name] for name in expected}, expected, 1e-5)


@needs_tails
@pytest.mark.parametrize("place", range(6))
def test_one_gradient_at_a_time(place: int, tail: str | None, device: str) -> None:
    given = leaves(tail, device)
    if place == len(given):
        return
    (expected,) = gradients(lambda *given: function(*given, tail=tail), given)[place : place + 1]
    alone = [tensor.detach() for tensor in given]
    alone[place].requires_grad_()
    weight = torch.linspace(-1, 1, given[0].numel(), device=device).view_as(given[0])
    (actual,) = torch.autograd.grad((op(*alone, tail=tail) * weight).sum(), alone[place])
    assert torch.equal(actual, expected)


@needs_tails
def test_derivatives(tail: str | None, device: str) -> None:
    """Second ones too: they go through the formulas, as in eager mode."""
    assert gradcheck(lambda *given: op(*given, tail=tail), leaves(tail, device))
    assert gradgradcheck(lambda *given: op(*given, tail=tail), leaves(tail, device))


@needs_tails
def test_only_y_is_differentiable(tail: str | None, device: str) -> None:
    given = leaves(tail, device)
    tensors = given if tail else (*given, None)
    y, *others = OP.se_forward(*tensors, 1, 0, TAIL_CODES[tail])
    assert y.requires_grad
    assert not any(other.requires_grad for other in others if other is not None)
    assert (others[-1] is not None) == (tail == "add_relu")
    with torch.no_grad():
        assert not OP.se_forward(*tensors, 1, 0, TAIL_CODES[tail])[0].requires_grad


@needs_tails
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype, tail: str | None, device: str) -> None:
    given: list[Any] = leaves(tail, device, dtype)
    tensors = given if tail else (*given, None)
    torch.library.opcheck(OP.se_forward, (*tensors, 1, 0, TAIL_CODES[tail]))


def python_functions(call: Callable[[], object]) -> set[str]:
    """The names of all Python functions that run in the call."""
    names = set()

    def note(frame: Any, event: str, _: object) -> None:
        if event == "call":
            names.add(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return names


def test_eager_mode_runs_below_it(device: str) -> None:
    """The registered gradient costs host time; eager mode has SEBlockFunction."""
    given = leaves(None, device)
    registered = "autograd_impl"  # PyTorch's, around what is registered
    assert registered in python_functions(lambda: op(*given, tail=None))
    assert registered not in python_functions(lambda: function(*given, tail=None))
    with torch.no_grad():
        assert registered not in python_functions(lambda: function(*given, tail=None))
        layer = nn.Sequential(*network()[1:2])
        assert registered not in python_functions(lambda: layer(torch.randn(1, 12, 2, 2)))


def test_eager_mode_leaves_autograd_as_it_was(device: str) -> None:
    """After a call, after a call that fails, and where autograd is off already."""
    given = leaves(None, device)
    function(*given, tail=None)
    assert op(*given, tail=None).requires_grad
    with pytest.raises(ValueError, match="reduce_weight"):
        function(given[0], given[2], *given[2:], tail=None)
    assert op(*given, tail=None).requires_grad
    with torch._C._AutoDispatchBelowAutograd(), torch.no_grad():
        function(*given, tail=None)
        with torch.enable_grad():
            assert not op(*given, tail=None).requires_grad
