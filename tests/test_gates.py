"""record_gates sees the gate of every SE layer; plot_gates draws it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

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
