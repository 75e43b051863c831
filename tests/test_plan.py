"""The plan is a pure function: checked over the whole workload table, on no device."""

from __future__ import annotations

import pytest
import torch

from seblock_cuda import _core, explain
from tests import cases

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("workload", cases.workloads(), ids=lambda row: row.name)
def test_every_workload(workload: cases.Workload, layout: str, dtype: str) -> None:
    s = workload.height * workload.width
    chosen = _core.plan(128, workload.channels, s, workload.reduced, dtype, layout, dtype, True)
    size = SIZES[dtype]
    assert chosen.strategy == "split"
    assert chosen.vec * size == 16 or (layout == "nhwc" and workload.channels % (16 // size))
    assert chosen.lanes & (chosen.lanes - 1) == 0 and chosen.lanes <= 256
    assert layout == "nchw" or chosen.lanes * chosen.vec * size <= 256
    assert 1 <= chosen.splits <= s
    x = 128 * workload.channels * s * size
    weights = 2 * workload.channels * workload.reduced * size
    forward, backward = chosen.forward, chosen.backward
    assert (forward.x, backward.x) == (2 * x, 3 * x)  # backward: dy twice
    assert forward.weights == backward.weights == 128 // 8 * weights  # per group of samples
    assert forward.read == forward.x + forward.weights + forward.small
    assert forward.written >= x and backward.written >= x + weights
    if x > 2**26:  # the rest is small
        assert forward.small + forward.written < 1.2 * x
        assert backward.small + backward.written < 1.4 * x + weights


def test_without_samples_only_the_weight_gradients_are_written() -> None:
    chosen = _core.plan(0, 8, 16, 2, "float32", "nchw", "float32", True)
    assert (chosen.forward.launches, chosen.backward.launches) == (0, 1)
    assert chosen.forward.read == chosen.forward.written == chosen.backward.read == 0
    assert chosen.backward.written == 2 * 8 * 2 * 4


def test_only_workspace_and_traffic_depend_on_the_batch() -> None:
    for layout in cases.LAYOUTS:
        plans = [_core.plan(n, 48, 12544, 4, "bfloat16", layout, "float32", True) for n in (1, 999)]
        assert len({(p.vec, p.lanes, p.splits) for p in plans}) == 1
        assert plans[0].forward_workspace_bytes * 999 == plans[1].forward_workspace_bytes


def test_misaligned_tensors_go_one_element_at_a_time() -> None:
    assert _core.plan(2, 64, 49, 4, "bfloat16", "nchw", "bfloat16", False).vec == 1
    assert _core.plan(2, 63, 49, 4, "bfloat16", "nhwc", "bfloat16", True).vec == 1
    assert _core.plan(2, 63, 49, 4, "bfloat16", "nchw", "bfloat16", True).vec == 8


def test_impossible_problems_are_refused() -> None:
    for shape in ((-1, 8, 4, 2), (1, 0, 4, 2), (1, 8, 0, 2), (1, 8, 4, 0)):
        with pytest.raises(ValueError):
            _core.plan(*shape, "float32", "nchw", "float32", True)
    with pytest.raises(ValueError, match="dtype"):
        _core.plan(1, 8, 4, 2, "int8", "nchw", "float32", True)


def test_explain_reads_the_tensors() -> None:
    x = torch.empty(128, 2048, 7, 7, dtype=torch.bfloat16, device="meta")
    chosen = explain(x, torch.empty(128, 2048, 1, 1, device="meta"))
    assert chosen.vec == 8
    assert "strategy S" in repr(chosen) and "squeeze" in repr(chosen)
    last = x.to(memory_format=torch.channels_last)
    assert explain(last, torch.empty(128, 2048, device="meta")).lanes == 16
    with pytest.raises(ValueError, match="reduce_weight must be"):
        explain(x, torch.empty(128, 2047, device="meta"))
