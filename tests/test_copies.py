"""Copies of converted models, the hooks on them, and what PyTorch builds around a module."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from seblock_cuda import SEBlock, convert_se_modules, revert_se_modules
from seblock_cuda.convert.tail import FusedTail
from seblock_cuda.fused import FusedSE
from tests.models import Block, SELayer, check_same, results

pytestmark = pytest.mark.usefixtures("one_thread")

C = 8
X = torch.randn(3, C, 5, 4, generator=torch.Generator().manual_seed(1))


def converted(*layers: nn.Module) -> tuple[nn.Sequential, nn.Sequential]:
    """The plain model and the converted one."""
    plain = nn.Sequential(*layers)
    fused = copy.deepcopy(plain)
    report = convert_se_modules(fused, fuse_residual=True)
    assert not report.left, report
    return plain, fused


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def through_torch(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def through_ema(model: nn.Module) -> nn.Module:
    return AveragedModel(model).module


COPIES: list[Callable[[Any], Any]] = [copy.deepcopy, through_pickle, through_torch, through_ema]


@pytest.mark.parametrize("copied", COPIES)
def test_copies_are_fused(copied: Callable[[Any], Any]) -> None:
    plain, fused = converted(SELayer(C), Block(C), Block(C))
    other = copied(fused)
    assert isinstance(other[0], FusedSE) and isinstance(other[2], FusedTail)
    assert other[1]._reading.states(other[1]) is not None
    assert other[1]._tail.forward is not None
    check_same(results(other, X), results(plain, X), 1e-5)
    with torch.no_grad():  # of its own weights
        other[0].fc[0].weight.zero_()
    check_same(results(fused, X), results(plain, X), 1e-5)
    assert revert_se_modules(other) == 3 and type(other[2]) is Block


@pytest.mark.filterwarnings("ignore:.*runs as plain PyTorch")
@pytest.mark.parametrize("copied", COPIES)
def test_copies_of_what_was_changed(copied: Callable[[Any], Any]) -> None:
    plain, fused = converted(SELayer(C), Block(C), Block(C))
    for model in (plain, fused):
        model[0].fc[1] = nn.GELU()
        model[1].relu = nn.LeakyReLU(0.2)
        model[2].se.register_forward_hook(double)
    other = copied(fused)
    check_same(results(other, X), results(plain, X), 1e-5)
    other[1].relu = nn.ReLU()
    other[2].se._forward_hooks.clear()
    other[0].fc[1] = nn.ReLU()
    for model in (other, plain):
        model[0].fc[1] = nn.ReLU()
        model[1].relu = nn.ReLU()
        model[2].se._forward_hooks.clear()
    check_same(results(other, X), results(plain, X), 1e-5)


def double(module: nn.Module, inputs: Any, y: Tensor) -> Tensor:
    return 2 * y


def test_shallow_copies() -> None:
    plain, fused = converted(SELayer(C))
    other = copy.copy(fused[0])
    assert isinstance(other, FusedSE) and other.fc is fused[0].fc
    assert torch.allclose(other(X), plain(X), atol=1e-6)


@pytest.mark.parametrize("before", [True, False])
def test_compiled_in_place(before: bool) -> None:
    """Module.compile of a layer and of a block, before or after the conversion."""
    plain = nn.Sequential(SELayer(C), Block(C))
    fused = copy.deepcopy(plain)
    torch._dynamo.reset()
    graphs: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph.print_readable(print_output=False))
        return graph.forward

    def compile_all() -> None:
        for module in fused:
            module.compile(backend=backend, fullgraph=True)

    if before:
        compile_all()
        fused(X)
    convert_se_modules(fused, fuse_residual=True)
    if not before:
        compile_all()
    check_same(results(fused, X), results(plain, X), 1e-5)
    assert all("se_forward" in graph for graph in graphs[-2:])
    check_same(results(copy.deepcopy(fused), X), results(plain, X), 1e-5)
    assert revert_se_modules(fused) == 2
    check_same(results(fused, X), results(plain, X), 1e-5)


HOOKS = ["register_forward_pre_hook", "register_forward_hook"]
HOOKS += ["register_full_backward_pre_hook", "register_full_backward_hook"]


def ways(model: nn.Sequential) -> dict[str, Callable[[], Any]]:
    """Every path that a call of layer and block may take."""

    def train(x: Tensor) -> None:
        x = x.clone().requires_grad_()
        model(x).sum().backward()

    def under_autocast() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            train(X)

    def with_a_hook_inside() -> None:
        for module in (model[0].fc[0], model[1].relu):
            module.register_forward_hook(lambda *_: None)
        train(X)

    return {
        "fused": lambda: train(X),
        "autocast": under_autocast,
        "hook inside": with_a_hook_inside,
    }


@pytest.mark.filterwarnings("ignore:.*runs as plain PyTorch")
@pytest.mark.parametrize("way", ["fused", "autocast", "hook inside"])
def test_hooks_run_once_and_stay(way: str) -> None:
    """Those put on before the conversion, after it, and after the way back."""
    model = nn.Sequential(SELayer(C), Block(C))
    seen: list[str] = []
    for when in ("before", "after"):
        if when == "after":
            convert_se_modules(model, fuse_residual=True)
        for i, module in enumerate(model):
            for kind in HOOKS:
                name = f"{when} {i} {kind}"
                getattr(module, kind)(lambda *_, name=name: seen.append(name))
    ways(model)[way]()
    assert len(seen) == len(set(seen)) == 2 * 2 * len(HOOKS)
    seen.clear()
    revert_se_modules(model)
    ways(model)[way]()
    assert len(seen) == len(set(seen)) == 2 * 2 * len(HOOKS)


def test_hooks_see_what_the_plain_model_shows_them() -> None:
    plain, fused = converted(SELayer(C), Block(C))
    shown: list[list[Tensor]] = []
    for model in (plain, fused):
        shown.append([])
        for module in model:
            module.register_forward_pre_hook(lambda _, x: (x[0] + 1,))
            module.register_forward_hook(lambda _, x, y, shown=shown[-1]: shown.extend([*x, y]))
        model(X)
    for expected, actual in zip(*shown):
        assert torch.allclose(actual, expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*runs as plain PyTorch")
@pytest.mark.parametrize("path", ["op", "plain", "no batch"])
@pytest.mark.parametrize("make", [SELayer, lambda c: SEBlock(c, 1 / 2), Block])
def test_replicas_have_their_own_weights(make: Callable[[int], nn.Module], path: str) -> None:
    """As nn.DataParallel makes them, here with weights of zero: then the gate is 1/2."""
    model = nn.Sequential(make(C)).eval()
    convert_se_modules(model, fuse_residual=True)
    layer: Any = model[0]
    if path == "plain":
        inner = layer.se if hasattr(layer, "se") else layer
        next(inner.children()).register_forward_hook(lambda *_: None)
    replica = replicate(layer)
    x = X[0] if path == "no batch" and isinstance(layer, SEBlock) else X
    y = replica(x)
    if hasattr(replica, "se"):
        assert torch.allclose(y, torch.relu(x), atol=1e-6)  # a convolution of zeros, the shortcut
    else:
        assert torch.allclose(y, 0.5 * x, atol=1e-6)


def replicate(module: Any) -> Any:
    replica = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        replica._modules[name] = None if child is None else replicate(child)
    for name, parameter in module._parameters.items():
        value = None if parameter is None else torch.zeros_like(parameter).requires_grad_()
        setattr(replica, name, value)
    return replica


def test_methods_attributes_and_type_of_the_class() -> None:
    class WithMore(SELayer):
        reduction = 4

        @property
        def width(self) -> int:
            return self.fc[0].in_features

        @classmethod
        def made(cls, channels: int) -> Any:
            return cls(channels)

    layer = WithMore(C)
    expected = layer.gate(X)
    model = nn.Sequential(layer)
    convert_se_modules(model)
    assert model[0] is layer and isinstance(layer, WithMore) and isinstance(layer, FusedSE)
    assert torch.equal(layer.gate(X), expected)
    assert layer.reduction == 4 and layer.width == C and isinstance(layer.made(C), WithMore)
    assert type(layer).__name__ == "WithMore" and repr(layer).startswith("WithMore(")


def test_functional_calls_use_the_given_weights() -> None:
    plain, fused = converted(SELayer(C), Block(C))
    given = {name: torch.rand_like(p) for name, p in plain.named_parameters()}
    expected = torch.func.functional_call(plain, given, (X,))
    assert torch.allclose(torch.func.functional_call(fused, given, (X,)), expected, atol=1e-5)
