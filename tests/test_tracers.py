"""Tracers see the plain layer: torch.jit.trace and script, torch.fx and what is built on it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from seblock_cuda import (
    EffectiveSE,
    SEBlock,
    SEResidual,
    SqueezeExcitation,
    convert_se_modules,
    use_fused_se,
)
from tests.models import Block, SELayer, check_same, results
from tests.test_ecosystem import network

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*(deprecated|migrate)"),
]

X = torch.randn(4, 3, 9, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> nn.Module:
    """Every layer of the package, and converted ones with and without a folded tail."""
    return network()


def saved(scripted: Any) -> Any:
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.parametrize("grad", [True, False])
def test_jit_trace(model: nn.Module, grad: bool) -> None:
    """Traced, checked, saved, run with another batch, and trained."""
    with torch.set_grad_enabled(grad):
        traced = saved(torch.jit.trace(model, X))
    for x in (X, X[:1]):
        check_same(results(traced, x), results(model, x), 1e-5)
    assert "seblock_cuda::" not in str(traced.inlined_graph)  # it is loaded without this package


def test_jit_script(model: nn.Module) -> None:
    kinds = [type(module) for module in model.modules()]
    scripted = saved(torch.jit.script(model))
    check_same(results(scripted, X), results(model, X), 1e-5)
    assert [type(module) for module in model.modules()] == kinds  # the model stays as it was


def test_fx_and_script_after_it(model: nn.Module) -> None:
    expected = results(model, X)
    traced = fx.symbolic_trace(model)
    check_same(results(traced, X), expected, 1e-5)
    targets = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
    assert {"1.reduce", "2.scale_activation", "3.fc", "5.fc.0", "6.se.expand"} <= targets
    check_same(results(saved(torch.jit.script(traced)), X), expected, 1e-5)


@pytest.mark.parametrize("make", [lambda: SEBlock(8, 1 / 2), lambda: SEResidual(8, 1 / 2)])
def test_the_layer_itself_is_traced(make: Callable[[], nn.Module]) -> None:
    layer = make()
    inputs = [torch.randn(2, 8, 3, 3) for _ in range(1 + isinstance(layer, SEResidual))]
    expected = layer(*inputs)
    names = ["inputs", "shortcut"][: len(inputs)]
    graph = fx.symbolic_trace(layer)
    assert [node.name for node in graph.graph.nodes if node.op == "placeholder"] == names
    for traced in (graph, torch.jit.script(layer), torch.jit.trace(layer, tuple(inputs))):
        assert torch.allclose(traced(*inputs), expected, atol=1e-6)


@pytest.mark.parametrize("fuse_residual", [False, True])
def test_a_converted_layer_itself_is_traced(fuse_residual: bool) -> None:
    model = nn.Sequential(Block(8) if fuse_residual else SELayer(8)).eval()
    x = torch.randn(2, 8, 5, 4)
    expected = model(x)
    convert_se_modules(model, fuse_residual=fuse_residual)
    (node, *_) = fx.symbolic_trace(model[0]).graph.nodes
    assert node.name == "x"
    for traced in (fx.symbolic_trace(model[0]), torch.jit.script(model[0])):
        assert torch.allclose(traced(x), expected, atol=1e-6)


def test_the_switch_changes_nothing_for_tracers(model: nn.Module) -> None:
    with use_fused_se(False):
        fx.symbolic_trace(model)
        torch.jit.script(model)


def test_fx_quantisation(model: nn.Module) -> None:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    expected = model(X)
    with torch.no_grad():
        prepared = prepare_fx(model, get_default_qconfig_mapping(), (X,))
        prepared(X)
        quantised = convert_fx(prepared)
        assert isinstance(quantised.get_submodule("1.reduce"), torch.ao.nn.quantized.Conv2d)
        assert (quantised(X) - expected).norm() < 0.2 * expected.norm()


def test_fake_tensors(model: nn.Module) -> None:
    """Shapes and strides without memory."""
    x = X.to(memory_format=torch.channels_last)
    expected = model(x)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y = model(mode.from_tensor(x))
        y.sum().backward()
    assert y.shape == expected.shape and y.stride() == expected.stride()
    with torch._subclasses.FakeTensorMode():
        made = nn.Sequential(SEBlock(8, 1 / 2), SqueezeExcitation(8, 2), EffectiveSE(8))
        assert made(torch.randn(2, 8, 3, 3)).shape == (2, 8, 3, 3)


def test_converting_a_fake_model() -> None:
    """A layer that is made of fake tensors has no numbers to prove: it is left, and works."""
    with torch._subclasses.FakeTensorMode():
        model = nn.Sequential(SELayer())
        (entry,) = convert_se_modules(model)
        assert entry.action == "left" and "FakeTensor" in entry.reason
        assert model(torch.randn(2, 12, 3, 3)).shape == (2, 12, 3, 3)


def test_tensorboard(model: nn.Module, tmp_path: Any) -> None:
    board = pytest.importorskip("torch.utils.tensorboard")
    with board.SummaryWriter(tmp_path) as writer:
        writer.add_graph(model, X)


def test_backward_of_an_extracted_feature(model: nn.Module) -> None:
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    extractor = extraction.create_feature_extractor(model, {"1": "early", "5": "late"})
    model.requires_grad_(True)

    def late(model: nn.Module, x: Tensor) -> Tensor:
        return model(x)["late"]

    actual = results(extractor, X, late)
    expected = results(model[:6], X)
    assert torch.allclose(actual["y"], expected["y"], atol=1e-6)
    assert torch.allclose(actual["x"], expected["x"], atol=1e-6)
