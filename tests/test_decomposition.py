"""The ops in PyTorch's own operators, for whoever asks for those, and for nobody else."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from seblock_cuda import _ops, decompositions, reference
from tests import cases
from tests.models import check_same, results
from tests.test_ecosystem import X, network

OP = torch.ops.seblock_cuda
TAIL_CODES = {None: 0, "add": 1, "add_relu": 2}
BATCH = torch.export.Dim("batch", min=1, max=64)


def targets(graph: fx.Graph) -> set[Any]:
    return {node.target for node in graph.nodes if node.op == "call_function"}


def beyond_core(graph: fx.Graph) -> set[str]:
    """The operators that are not in PyTorch's core set; views are core under another name."""
    overloads = [t for t in targets(graph) if isinstance(t, torch._ops.OpOverload)]
    return {str(target) for target in overloads if torch.Tag.core not in target.tags}


def problem_of(shape: str, dtype: torch.dtype, layout: str, tail: str | None, device: str) -> Any:
    return cases.make_problem(
        cases.SHAPES[shape], dtype, layout, bias=True, tail=tail, device=device
    )


def check_alike(actual: Iterable[Tensor | None], expected: Iterable[Tensor | None]) -> None:
    """The same shapes, strides and dtypes, and the same numbers but for rounding."""
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is None or theirs is None:
            continue
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.stride() == theirs.stride()
        eps = torch.finfo(ours.dtype).eps
        scale = theirs.abs().max().item() if theirs.numel() else 1.0
        assert torch.allclose(ours, theirs, rtol=4 * eps, atol=64 * eps * scale)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("tail", TAIL_CODES)
@pytest.mark.parametrize("shape", ["even", "7x7", "primes", "1-D", "3-D", "empty"])
def test_same_as_the_ops(
    shape: str, tail: str | None, layout: str, dtype: torch.dtype, device: str
) -> None:
    problem = problem_of(shape, dtype, layout, tail, device)
    table = decompositions()
    codes = (3, 1, TAIL_CODES[tail])
    given = (problem.x, *problem.parameters, problem.residual, *codes)
    expected = OP.se_forward(*given)
    actual = table[OP.se_forward.default](*given)
    check_alike(actual[:-1], expected[:-1])
    mask = expected[-1]
    if tail == "add_relu":
        assert actual[-1].shape == mask.shape and actual[-1].dtype == mask.dtype
        bits, of_op = (_ops.unpack_mask(m, problem.x) for m in (actual[-1], mask))
        assert torch.equal(bits, ~(actual[0] <= 0))
        assert (bits != of_op).sum() <= bits.numel() // 100  # but where y is 0 to a rounding
    else:
        assert actual[-1] is None
    for biases in ((True, False), (False, True)):
        given = (problem.dy, problem.x, *problem.parameters[:2], *expected[1:], *biases, *codes)
        check_alike(table[OP.se_backward.default](*given), OP.se_backward(*given))


@pytest.mark.parametrize("gate", range(len(reference.GATES)))
@pytest.mark.parametrize("activation", range(len(reference.ACTIVATIONS)))
def test_all_names(activation: int, gate: int, device: str) -> None:
    problem = problem_of("even", torch.float64, "nchw", None, device)
    table = decompositions()
    given = (problem.x, *problem.parameters, None, activation, gate, 0)
    expected = OP.se_forward(*given)
    check_alike(table[OP.se_forward.default](*given), expected)
    given = (problem.dy, problem.x, *problem.parameters[:2], *expected[1:], True, True)
    given = (*given, activation, gate, 0)
    check_alike(table[OP.se_backward.default](*given), OP.se_backward(*given))


def test_strides_that_are_copied(device: str) -> None:
    problem = problem_of("even", torch.float32, "nchw", None, device)
    nhwc = problem.x.to(memory_format=torch.channels_last)
    for x in (problem.x[:, :, ::2], problem.x.mT, nhwc[:, :, ::2], nhwc.mT):
        given = (x, *problem.parameters, None, 0, 0, 0)
        check_alike(decompositions()[OP.se_forward.default](*given), OP.se_forward(*given))


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_exported_programs(layout: str) -> None:
    model = network()
    x = cases.in_layout(X, layout)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: BATCH},))
    plain = program.run_decompositions(decompositions())
    assert not any("seblock_cuda" in str(target) for target in targets(plain.graph))
    assert not beyond_core(plain.graph)
    for given in (x, x[:2]):
        check_same(results(plain.module(), given), results(model, given), 1e-5)


@pytest.mark.parametrize("mode", ["real", "symbolic"])
@pytest.mark.parametrize("tail", TAIL_CODES)
def test_a_training_step(tail: str | None, mode: str) -> None:
    """Forward and backward, the mask between them, in core operators."""
    problem = problem_of("primes", torch.float32, "nchw", tail, "cpu")
    given = [t for t in (problem.x, *problem.parameters, problem.residual) if t is not None]

    def step(dy: Tensor, *given: Tensor) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in given]
        tensors = leaves if tail else (*leaves, None)
        y = OP.se_forward(*tensors, 1, 0, TAIL_CODES[tail])[0]
        return [y, *torch.autograd.grad(y, leaves, dy)]

    expected = step(problem.dy, *given)
    traced = make_fx(step, decomposition_table=decompositions(), tracing_mode=mode)
    graph = traced(problem.dy, *given)
    assert not any("seblock_cuda" in str(target) for target in targets(graph.graph))
    check_alike(graph(problem.dy, *given), expected)


def test_nobody_else_gets_them() -> None:
    """Neither PyTorch's default table nor torch.compile: there the op stays."""
    model = network()
    program = torch.export.export(model, (X,)).run_decompositions()
    assert OP.se_forward.default in targets(program.graph)
    assert OP.se_forward.default not in torch._decomp.decomposition_table
    seen: set[Any] = set()

    def keep(graph: fx.GraphModule, _: object) -> Any:
        seen.update(targets(graph.graph))
        return make_boxed_func(graph.forward)

    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._inductor.decomposition import select_decomp_table

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep, decompositions=select_decomp_table())
    torch.compile(model, backend=backend)(X).sum().backward()
    assert {OP.se_forward_no_grad.default, OP.se_backward.default} <= seen


@pytest.mark.filterwarnings("ignore")
def test_onnx_of_an_exported_program() -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = network()
    program = torch.export.export(model, (X,), dynamic_shapes=({0: BATCH},))
    made = torch.onnx.export(program.run_decompositions(decompositions()), verbose=False)
    assert made is not None
    buffer = io.BytesIO()
    made.save(buffer)
    graph = onnx.load_from_string(buffer.getvalue())
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
    session = runtime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    (name,) = (given.name for given in session.get_inputs())
    for x in (X, X[:1]):
        (y,) = session.run(None, {name: x.numpy()})
        assert torch.allclose(torch.as_tensor(y), model(x), atol=1e-5)
