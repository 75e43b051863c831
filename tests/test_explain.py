"""`explain` asks for the plans of what it is given: shapes, layout, addresses, device."""

from __future__ import annotations

import pytest
import torch

from seblock_cuda import explain


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
