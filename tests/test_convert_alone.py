"""One layer that cannot be read, copied or proved never stops the conversion of the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seblock_cuda import convert_se_modules
from seblock_cuda.convert import prove, read, replace
from tests.models import Block, C, SELayer, check_same, identities, results, types


class Lock(SELayer):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class KeepsItsGate(SELayer):
    def forward(self, x: Tensor) -> Tensor:
        self.last = self.gate(x)
        return x * self.last


class NoSqueeze(SELayer):
    def __init__(self) -> None:
        super().__init__()
        self.fc[0], self.fc[2] = nn.Linear(C, 0), nn.Linear(0, C)


class Exits(SELayer):
    def forward(self, x: Tensor) -> Tensor:
        raise LookupError("no such thing")


class BadAttribute(SELayer):
    def __getattr__(self, name: str) -> Any:
        if name == "kernel_size":
            raise OSError("on every look")
        return super().__getattr__(name)


class NoSubclass(SELayer):
    def __init_subclass__(cls, *, registered: str) -> None:
        raise AssertionError


ODD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a lock": (Lock, "cannot pickle '_thread.lock' object"),
    "a tensor with a history": (KeepsItsGate, "cannot be copied"),
    "a squeeze of width 0": (NoSqueeze, "its squeeze has no channels"),
    "a forward that raises": (Exits, "LookupError: no such thing"),
    "a class that cannot be subclassed": (NoSubclass, "__init_subclass__"),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ODD)
def test_the_rest_is_converted(name: str, verify: bool) -> None:
    make, reason = ODD[name]
    model = nn.Sequential(SELayer(), make(), SELayer(), Block(C))
    if name == "a tensor with a history":
        model[1](torch.randn(1, C, 3, 3))
    before = list(identities(model))
    report = convert_se_modules(model, verify=verify, fuse_residual=True)
    assert [entry.path for entry in report.converted] == ["0", "2", "3.se"]
    assert len(report.having("tail fused")) == 1
    (left,) = report.left
    assert left.path == "1" and reason in left.reason, left
    assert type(model[1]) is make and list(identities(model)) == before


@pytest.mark.parametrize(
    "where", [(read, "_read_structure"), (prove, "own_copy"), (prove, "prove")]
)
def test_whatever_is_raised(where: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    module, function = where
    real = getattr(module, function)

    def broken(layer: nn.Module, *args: Any) -> Any:
        if any(getattr(child, "odd", False) for child in layer.modules()):
            raise ZeroDivisionError("unforeseen")
        return real(layer, *args)

    monkeypatch.setattr(module, function, broken)
    model = nn.Sequential(SELayer(), SELayer())
    model[1].odd = True
    converted, left = convert_se_modules(model)
    assert converted.action == "converted"
    assert left.action == "left" and "ZeroDivisionError: unforeseen" in left.reason


class Scaled(Block):
    """A learnable scalar, as in ReZero, SkipInit and LayerScale."""

    def __init__(self) -> None:
        super().__init__(C)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) * 1 + x * self.scale)


class ScaledBefore(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.se(self.bn(self.conv(x)) * self.scale) + x)


@pytest.mark.parametrize("block, action", [(Scaled, "tail kept"), (ScaledBefore, "tail fused")])
def test_a_scalar_parameter_in_a_block(block: type[nn.Module], action: str) -> None:
    model = nn.Sequential(block())
    x = torch.randn(2, C, 5, 4)
    expected = results(model, x)
    _, tail = convert_se_modules(model, fuse_residual=True)
    assert tail.action == action
    check_same(results(model, x), expected, 1e-5)


def test_a_tail_that_cannot_be_proved_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seblock_cuda.convert.tail._fill", lambda own: 1 / 0)
    model = nn.Sequential(Block(C))
    converted, tail = convert_se_modules(model, fuse_residual=True)
    assert converted.action == "converted" and tail.action == "tail kept"
    assert "ZeroDivisionError" in tail.reason and type(model[0]) is Block


@pytest.mark.parametrize("calls", [1, 2])
def test_an_interruption_leaves_nothing_half_done(
    calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = replace.become, []

    def interrupted(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        made.append(args)
        if len(made) == 2 * calls:  # one on the copy that is proved, one on the layer
            raise KeyboardInterrupt

    for module in ("replace", "tail"):
        monkeypatch.setattr(f"seblock_cuda.convert.{module}.become", interrupted)
    model = nn.Sequential(SELayer(), Block(C))
    kinds, before = types(model), [dict(vars(module)) for module in model.modules()]
    with pytest.raises(KeyboardInterrupt):
        convert_se_modules(model, fuse_residual=True)
    assert types(model) == kinds
    assert [dict(vars(module)) for module in model.modules()] == before


def test_one_proof_for_what_is_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    proofs: list[str] = []
    real = prove.prove
    monkeypatch.setattr(
        prove, "prove", lambda m, r: proofs.append(m.fc[0].in_features) or real(m, r)
    )
    wider, other = SELayer(16), SELayer()
    other.fc[1] = nn.SiLU()
    model = nn.Sequential(SELayer(), wider, SELayer(), other, SELayer(bias=True), SELayer(16))
    report = convert_se_modules(model)
    assert [entry.proved_with for entry in report] == ["", "", "0", "", "", "1"]
    assert proofs == [12, 16, 12, 12]
    assert report.entries[2].difference == report.entries[0].difference
    assert "proved with 0" in str(report)


def test_what_only_looks_alike_is_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value, a function or an object that makes a layer another one."""

    class ByValue(SELayer):
        def __init__(self, factor: Any) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor) -> Tensor:
            factor = self.factor[0] if isinstance(self.factor, list) else self.factor
            return x * self.gate(x) * factor

    model = nn.Sequential(ByValue(1), ByValue(2), ByValue([1]), ByValue([2]), ByValue(1))
    actions = [entry.action for entry in convert_se_modules(model)]
    assert actions == ["converted", "left", "converted", "left", "converted"]
