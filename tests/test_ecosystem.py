"""The layers and a converted model under the rest of PyTorch.

SEBlock and the op themselves: tests/test_block.py, test_compile.py, test_autograd.py and others.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from seblock_cuda import (
    EffectiveSE,
    SEBlock,
    SEResidual,
    SqueezeExcitation,
    convert_se_modules,
    squeeze_excitation,
    use_fused_se,
)
from tests.models import Block, SELayer, check_same, results


class Tail(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.se = SEResidual(channels, 1 / 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.se(x, x)


def network() -> nn.Module:
    """Every layer of the package, and converted ones with and without a folded tail."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3),
        SEBlock(12, 1 / 4),
        SqueezeExcitation(12, 3, nn.SiLU, nn.Hardsigmoid),
        EffectiveSE(12),
        Tail(12),
        SELayer(12),
        Block(12),
    )
    report = convert_se_modules(model, fuse_residual=True)
    assert len(report.converted) == 2 and len(report.having("tail fused")) == 1, report
    return model.eval()


@pytest.fixture
def model() -> nn.Module:
    return network()


X = torch.randn(4, 3, 9, 8, generator=torch.Generator().manual_seed(1))


def test_compiled_training_with_a_dynamic_batch(model: nn.Module) -> None:
    model.train()
    reference = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, reference)]
    for n in (2, 5, 3):
        x = torch.randn(n, 3, 9, 8)
        expected = results(reference, x)
        with torch._dynamo.config.patch(error_on_recompile=True):
            check_same(results(model, x, lambda _, x: compiled(x)), expected, 1e-5)
        for optimizer in optimizers:
            optimizer.step()


def test_compiled_with_one_tensor_in_two_places() -> None:
    """The input as its own shortcut; one weight as both: each place has its gradient."""
    weight = torch.randn(12, 12, requires_grad=True)

    def function(x: Tensor) -> Tensor:
        return squeeze_excitation(x, weight, weight, residual=x)

    torch._dynamo.reset()
    x = torch.randn(2, 12, 3, 3, requires_grad=True)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    actual, expected = (
        torch.autograd.grad(run(x).square().sum(), [x, weight]) for run in (compiled, function)
    )
    for ours, theirs in zip(actual, expected):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(model: nn.Module, backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    check_same(results(model, X, lambda _, x: compiled(x)), results(model, X), 1e-4)
    if backend == "aot_eager":
        with use_fused_se(False):  # compiled anew, as plain PyTorch
            check_same(results(model, X, lambda _, x: compiled(x)), results(model, X), 1e-4)


def test_export(model: nn.Module) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (X,), dynamic_shapes=({0: batch},))
    names = {str(node.target) for node in program.graph.nodes}
    assert any("se_forward" in name for name in names)
    for n in (1, 4):
        assert torch.allclose(program.module()(X[:n]), model(X[:n]), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_onnx(model: nn.Module, dynamo: bool) -> None:
    """Standard operators only, and the same numbers in onnxruntime, for another batch too."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    buffer = io.BytesIO()
    if dynamo:
        pytest.importorskip("onnxscript")
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(model, (X,), dynamo=True, dynamic_shapes=shapes, verbose=False)
        assert program is not None
        program.save(buffer)
    else:
        axes = {"x": {0: "batch"}}
        torch.onnx.export(model, (X,), buffer, dynamo=False, input_names=["x"], dynamic_axes=axes)
    graph = onnx.load_from_string(buffer.getvalue())
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
    session = runtime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    (name,) = (given.name for given in session.get_inputs())
    for x in (X, torch.randn(2, 3, 9, 8)):
        (y,) = session.run(None, {name: x.numpy()})
        assert torch.allclose(torch.as_tensor(y), model(x), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_with_a_gradient_scaler(model: nn.Module, dtype: torch.dtype) -> None:
    model.train()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    target = torch.randn(4, 12, 7, 6)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", dtype):
            loss = F.mse_loss(model(X).float(), target)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and scaler.get_scale() == 1024.0


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(model: nn.Module, reentrant: bool) -> None:
    actual = results(model, X, lambda m, x: checkpoint(m, x, use_reentrant=reentrant))
    check_same(actual, results(model, X), 0.0)


def test_hooks(model: nn.Module) -> None:
    """Hooks that are put on a converted layer after its conversion are called."""
    seen: list[str] = []
    expected = results(model, X)
    for i, layer in enumerate(model):
        layer.register_forward_pre_hook(lambda *_, i=i: seen.append(f"pre {i}"))
        layer.register_forward_hook(lambda *_, i=i: seen.append(f"forward {i}"))
        layer.register_full_backward_hook(lambda *_, i=i: seen.append(f"backward {i}"))
    check_same(results(model, X), expected, 0.0)
    forward = [f"{when} {i}" for i in range(len(model)) for when in ("pre", "forward")]
    assert seen == [*forward, *(f"backward {i}" for i in reversed(range(len(model))))]


def functional(model: nn.Module) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A scalar of a small float64 input, for the transforms."""
    model.double()
    x = torch.randn(2, 3, 4, 3, dtype=torch.float64)
    return lambda x: model(x).square().sum(), x


def test_func_transforms(model: nn.Module) -> None:
    loss, x = functional(model)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    assert torch.allclose(torch.func.grad(loss)(x), expected)
    tangent = torch.randn_like(x)
    _, slope = torch.func.jvp(loss, (x,), (tangent,))
    assert torch.allclose(slope, (expected * tangent).sum())
    stack = torch.stack([x, 2 * x, -x])
    each = torch.stack([loss(x) for x in stack])
    assert torch.allclose(torch.func.vmap(loss)(stack), each)

    flat = x.flatten()
    hessian = torch.func.hessian(lambda flat: loss(flat.reshape(x.shape)))(flat)
    with use_fused_se(False):
        plain = torch.autograd.functional.hessian(lambda flat: loss(flat.reshape(x.shape)), flat)
    assert torch.allclose(hessian, plain, atol=1e-8)


def test_gradient_penalty(model: nn.Module) -> None:
    loss, x = functional(model)
    penalties = []
    for enabled in (True, False):
        with use_fused_se(enabled):
            leaf = x.clone().requires_grad_()
            (dx,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
            model.zero_grad()
            dx.square().sum().backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        penalties.append([leaf.grad, *grads])
    for fused, plain in zip(*penalties):
        assert torch.allclose(fused, plain, rtol=1e-6, atol=1e-8)


def test_inference_mode(model: nn.Module) -> None:
    expected = model(X)
    with torch.inference_mode():
        y = model(X)
    assert y.is_inference() and torch.equal(y, expected)
    model(X).sum().backward()  # nothing that it kept is an inference tensor


def test_checkpoints_are_plain_tensors(model: nn.Module) -> None:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = network()
    nn.init.zeros_(other[0].weight)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    check_same(results(other, X), results(model, X), 0.0)


@pytest.mark.parametrize("n", [1, 8])  # half a megabyte, and four
def test_memory_of_a_result(n: int) -> None:
    """It is freed by hand, and enlarged for another result, as any tensor's."""
    x = torch.randn(n, 64, 64, 32)
    with torch.no_grad():
        assert SEBlock(64, 1 / 4)(x).untyped_storage().resize_(0).nbytes() == 0
        twice = torch.cat([x, x])
        y = SEBlock(64, 1 / 4)(x)
        assert torch.equal(torch.add(twice, 1, out=y), twice + 1)


def test_whole_models_are_saved(model: nn.Module) -> None:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    check_same(results(torch.load(buffer, weights_only=False), X), results(model, X), 0.0)


def test_moving_average(model: nn.Module) -> None:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    first = [p.clone() for p in model.parameters()]
    average.update_parameters(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    average.update_parameters(model)
    for parameter, before in zip(average.module.parameters(), first):
        assert torch.allclose(parameter, before + 0.5, atol=1e-6)
    assert average(X).shape == (4, 12, 7, 6)


def test_deterministic_mode(model: nn.Module) -> None:
    expected = results(model, X)
    torch.use_deterministic_algorithms(True)
    try:
        check_same(results(model, X), expected, 0.0)
    finally:
        torch.use_deterministic_algorithms(False)


def test_channels_last_and_other_devices(model: nn.Module, device: str) -> None:
    expected = results(model, X)
    model.to(device)
    for layout in (torch.contiguous_format, torch.channels_last):
        actual = results(model, X.to(device, memory_format=layout))
        check_same({name: value.cpu() for name, value in actual.items()}, expected, 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_cuda_graph(model: nn.Module, device: str) -> None:
    model.to(device)
    model.requires_grad_(False)
    x = X.to(device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = model(x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.allclose(y, model(x), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_cuda_graphed_training(model: nn.Module, device: str) -> None:
    model.to(device)
    x = X.to(device)
    expected = results(model, x)
    sample = torch.randn_like(x).requires_grad_()
    graphed = torch.cuda.make_graphed_callables(copy.deepcopy(model), (sample,))
    check_same(results(graphed, x), expected, 1e-5)
