"""record_gates sees the gate of every SE layer; plot_gates draws it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from seblock_cuda import (
    EffectiveSE,
    SEBlock,
    SEResidual,
    SqueezeExcitation,
    convert_se_modules,
    plot_gates,
    record_gates,
)
from seblock_cuda.reference import PlainSEBlock
from tests.models import Block, SELayer


def test_every_layer_and_forward() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(SEBlock(8, 1 / 2), SqueezeExcitation(8, 2), EffectiveSE(8))
    with record_gates(model) as gates:
        inputs = [torch.randn(n, 8, 4, 3) for n in (2, 5)]
        for x in inputs:
            model(x)
    assert list(gates) == ["0", "1", "2"]
    for x, *recorded in zip(inputs, *gates.values()):
        for layer, gate in zip(model, recorded):
            y = layer(x)
            assert gate.shape == x.shape[:2] and not gate.requires_grad
            assert torch.allclose(x * gate[:, :, None, None], y, atol=1e-6)
            x = y
    model(inputs[0])
    assert len(gates["0"]) == 2  # no longer recorded
    assert not any(layer._forward_hooks for layer in model)


def test_seresidual_under_its_path() -> None:
    block = SEResidual(8, 1 / 2)
    with record_gates(nn.ModuleDict({"tail": block})) as gates:
        block(torch.randn(2, 8, 3, 3), torch.randn(2, 8, 3, 3))
    assert gates["tail"][0].shape == (2, 8)


def test_a_subclass_of_the_plain_block() -> None:
    class Tail(PlainSEBlock):
        def forward(self, inputs: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(inputs) + shortcut

    torch.manual_seed(0)
    x, block = torch.randn(2, 8, 3, 3), Tail(8, 1 / 2)
    with record_gates(nn.ModuleDict({"tail": block})) as gates:
        y = block(x, torch.zeros_like(x))
    assert torch.allclose(x * gates["tail"][0][:, :, None, None], y, atol=1e-6)


def test_same_gates_before_and_after_the_conversion() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_100").eval()
    x = torch.randn(2, 3, 64, 64)
    recorded = []
    for convert in (False, True):
        if convert:
            convert_se_modules(model)
        with record_gates(model) as gates, torch.no_grad():
            model(x)
        recorded.append(gates)
    before, after = recorded
    assert before.keys() == after.keys() and len(before) == 9
    for path in before:
        assert torch.allclose(before[path][0], after[path][0], atol=1e-4)


def test_hooks_are_removed_after_an_error() -> None:
    model = nn.Sequential(SEBlock(8, 1 / 2))
    with pytest.raises(ValueError), record_gates(model):
        model(torch.randn(2, 9, 3, 3))
    assert not model[0]._forward_hooks


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    gates = {f"layer{i}": [torch.rand(3, 8), torch.rand(2, 8)] for i in range(5)}
    file = tmp_path / "gates.png"
    figure = plot_gates(gates, [0, 1, 1, 0, 2], names=["cat", "dog", "fish"], file=file)
    panels = figure.get_axes()
    assert [panel.get_title() for panel in panels] == list(gates)
    assert [line.get_label() for line in panels[0].get_lines()] == ["cat", "dog", "fish"]
    values = torch.cat(gates["layer0"])
    drawn = torch.as_tensor(panels[0].get_lines()[1].get_ydata())
    assert torch.allclose(drawn, values[1:3].mean(0))
    assert file.stat().st_size > 0
    assert len(plot_gates(gates).get_axes()[0].get_lines()) == 1


def test_plot_refuses() -> None:
    with pytest.raises(ValueError, match="at least one forward"):
        plot_gates({"a": []})
    with pytest.raises(ValueError, match="one per sample of a: 2, got 3"):
        plot_gates({"a": [torch.rand(2, 4)]}, [0, 1, 2])


class Two(nn.Module):
    """One layer, within two modules."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Sequential(layer), nn.Sequential(nn.Identity(), layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(self.a(x)))


LAYERS = {
    "SEBlock": lambda: SEBlock(8, 1 / 2),
    "EffectiveSE": lambda: EffectiveSE(8),
    "plain": lambda: SELayer(8),
    "converted": lambda: _converted(SELayer(8)),
    "folded": lambda: _converted(Block(8)),
}


def _converted(layer: nn.Module) -> nn.Module:
    model = nn.Sequential(layer)
    convert_se_modules(model, fuse_residual=True)
    return model[0]


X = torch.randn(3, 8, 5, 4)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_checkpoint_is_recorded_once(name: str, reentrant: bool) -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 1), LAYERS[name](), nn.ReLU())
    x = X.clone().requires_grad_()
    with record_gates(model) as gates:
        for _ in range(2):
            checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    assert [len(each) for each in gates.values()] == [2]


@pytest.mark.parametrize("name", LAYERS)
def test_each_place_of_a_shared_layer(name: str) -> None:
    model = Two(LAYERS[name]())
    se = ".se" if name == "folded" else ""
    with record_gates(model) as gates:
        x = [X]
        for part in (model.a, model.a, model.b):
            x.append(part(x[-1]))
        model(X)
    assert {path: len(each) for path, each in gates.items()} == {f"a.0{se}": 4, f"b.1{se}": 2}
    if name != "folded":
        assert torch.allclose(x[2] * gates["b.1"][0][:, :, None, None], x[3], atol=1e-6)
    assert not any(module._forward_hooks for module in model.modules())


def test_places_that_one_module_calls() -> None:
    """They are told apart by the order of the calls."""
    layer = SEBlock(8, 1 / 2)
    model = nn.Sequential(layer, nn.Conv2d(8, 8, 1), layer)
    with record_gates(model) as gates:
        model(X)
        model(X)
    assert {path: len(each) for path, each in gates.items()} == {"0": 2, "2": 2}
    assert torch.equal(gates["0"][0], gates["0"][1])
    assert torch.equal(gates["2"][0], gates["2"][1])


@pytest.mark.parametrize("name", LAYERS)
def test_nested_and_beside_other_hooks(name: str, recwarn: pytest.WarningsRecorder) -> None:
    """The records are those of an untouched layer, and the other hooks are called once."""
    layer = LAYERS[name]()
    model = nn.Sequential(layer)
    with record_gates(model) as expected:
        model(X)
    inner = layer.se if name == "folded" else layer
    seen = []
    for module in (inner, next(inner.children())):
        module.register_forward_hook(lambda module, *_: seen.append(module))
    with record_gates(model) as outer:
        with record_gates(model) as within:
            model(X)
        model(X)
    for gates, times in ((outer, 2), (within, 1)):
        assert gates.keys() == expected.keys()
        for path, each in gates.items():
            assert len(each) == times and torch.allclose(each[0], expected[path][0], atol=1e-6)
    assert len(seen) == 4
    assert not any("not recorded" in str(w.message) for w in recwarn)


@pytest.mark.parametrize("name", ["SEBlock", "converted", "folded"])
def test_to_record_warns_of_nothing(name: str, recwarn: pytest.WarningsRecorder) -> None:
    model = nn.Sequential(LAYERS[name]())
    expected = model(X)
    with record_gates(model):
        assert torch.allclose(model(X), expected, atol=1e-6)
    assert not recwarn.list


def test_a_gate_that_cannot_be_read_is_named() -> None:
    model = nn.Sequential(SEBlock(8, 1 / 2))
    model[0].expand = nn.Sequential(model[0].expand, nn.Tanh())
    with (
        pytest.warns(UserWarning, match="gate of SEBlock is not recorded: expand is a Sequential"),
        record_gates(model) as gates,
    ):
        model(X)
    assert gates == {"0": []}
