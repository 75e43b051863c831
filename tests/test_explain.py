"""`explain` asks for the plans of what it is given: shapes, layout, addresses, device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seblock_cuda import SEBlock, convert_se_modules, explain
from tests.models import SELayer


def test_explain_has_a_plan_for_each_direction() -> None:
    x = torch.empty(128, 256, 56, 56, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(16, 256, 1, 1, device="meta")
    plans = explain(x, weight)
    assert plans.strategy == plans.forward.strategy == plans.backward.strategy == "stream"
    assert plans.forward.lag > plans.backward.lag
    lines = repr(plans).splitlines()
    assert lines[0].startswith("forward: stream, 16 bytes at a time") and "behind" in lines[0]
    assert lines[1].startswith("backward: stream, 16 bytes at a time") and len(lines) == 2
    with_residual = explain(x, weight, residual=x, residual_activation="relu")
    assert with_residual.forward.traffic.x == plans.forward.traffic.x + x.nbytes
    with pytest.raises(ValueError, match="reduce_weight must be"):
        explain(x, torch.empty(16, 255, device="meta"))


def test_explain_reads_layout_and_address(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.empty(4, 12)
    x = torch.empty(2, 12, 4, 4, dtype=torch.bfloat16)
    assert explain(x, weight).forward.vectors
    assert not explain(x.to(memory_format=torch.channels_last), weight).forward.vectors
    odd = torch.empty(x.numel() + 1, dtype=torch.bfloat16)[1:].view(x.shape)
    assert not explain(odd, weight).forward.vectors
    assert not explain(x, weight, residual=odd).forward.vectors
    plans = explain(x, weight, residual=odd)  # which the backward does not read
    assert plans.backward.vectors and plans.strategy is None
    monkeypatch.setenv("SEBLOCK_STRATEGY", "split")
    assert explain(x, weight).strategy == "split"


def test_a_layer_is_explained_as_its_weights_are() -> None:
    x = torch.empty(8, 64, 14, 14)
    layer = SEBlock(64, 1 / 16)
    assert repr(explain(x, layer)) == repr(explain(x, layer.reduce.weight, layer.expand.weight))
    converted = nn.Sequential(SELayer(64, 16))
    convert_se_modules(converted)
    assert repr(explain(x, converted[0])) == repr(explain(x, layer))
    layer.reduce.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="SEBlock runs as plain PyTorch: reduce has hooks"):
        explain(x, layer)
    with pytest.raises(TypeError, match="a Tensor or a fused layer, got Linear"):
        explain(x, nn.Linear(64, 4))
