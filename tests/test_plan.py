"""The plan is a pure function: checked over the whole workload table and all devices, on none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from seblock_cuda import _core, explain
from tests import cases

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
DEVICES = {name: _core.known_device(name) for name in _core.known_devices()}
STRATEGIES = ["split", "stream", "resident"]


def plan_of(workload: cases.Workload, layout: str, dtype: str, n: int = 128, **more: object):  # type: ignore[no-untyped-def]
    s = workload.height * workload.width
    return _core.plan(n, workload.channels, s, workload.reduced, dtype, layout, dtype, True, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("workload", cases.workloads(), ids=lambda row: row.name)
def test_split(workload: cases.Workload, layout: str, dtype: str) -> None:
    s = workload.height * workload.width
    chosen = plan_of(workload, layout, dtype, strategy="split")
    size = SIZES[dtype]
    assert chosen.strategy == "split"
    assert chosen.vec * size == 16 or (layout == "nhwc" and workload.channels % (16 // size))
    lanes = chosen.split.lanes
    assert lanes & (lanes - 1) == 0 and lanes <= 256
    assert layout == "nchw" or lanes * chosen.vec * size <= 256
    assert 1 <= chosen.split.splits <= s
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


@pytest.mark.parametrize("tail", ["none", "add", "add_relu"])
@pytest.mark.parametrize("n", [1, 8, 128, 4096])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_every_workload_on_every_device(layout: str, device: str, n: int, tail: str) -> None:
    """What a launch of strategies T and R needs to be right, and their limits."""
    limits = DEVICES[device]
    for workload in cases.workloads():
        plan = plan_of(workload, layout, "bfloat16", n, limits=limits, tail=tail)
        assert plan.strategy in ("stream", "resident"), workload.name
        piece, s = plan.slice, workload.height * workload.width
        slices = piece.channel_slices * piece.row_slices
        # the slices cover everything, and none is empty
        assert 0 < workload.channels - (piece.channel_slices - 1) * piece.channels <= piece.channels
        assert 0 < s - (piece.row_slices - 1) * piece.rows <= piece.rows
        assert 1 <= piece.samples <= min(n, 8)
        assert piece.tasks == -(-n // piece.samples) * slices
        # they begin and end at 16-byte vectors
        run = piece.channels * (s if layout == "nchw" else 1)
        assert run * 2 % 16 == 0
        assert piece.shared_bytes <= limits.shared_bytes
        x = n * workload.channels * s * 2
        mask = x // 16 if tail == "add_relu" else 0
        forward, backward = plan.forward, plan.backward
        assert forward.x == (1 if tail == "none" else 2) * x
        assert backward.x == 2 * x + mask
        assert (forward.launches, backward.launches) == (1, 2)
        if plan.strategy == "stream":
            # a block waits for lower tickets only, or it might wait forever
            assert piece.lag >= slices - 1
            assert piece.blocks <= piece.tasks
            assert forward.again == backward.again == x
            # what lies between the two reads of x fits in L2, wherever a sample does not fill it
            # alone and there is much of it; on a T4 (4 MB) the second read goes to memory again
            sample = x // n
            if 4 * sample < limits.l2_bytes and limits.l2_bytes >= 32 * 2**20:
                assert forward.window <= limits.l2_bytes
        else:
            assert (piece.lag, slices, forward.again, backward.again) == (0, 1, 0, 0)
        weights = 2 * workload.channels * workload.reduced * 2
        groups = -(-n // piece.samples)
        assert forward.weights == backward.weights == groups * piece.row_slices * weights


def test_slices_do_not_depend_on_the_batch() -> None:
    """So neither does the order of any sum, as long as the strategy is the same."""
    for layout in cases.LAYOUTS:
        for workload in cases.workloads():
            pieces = [
                plan_of(workload, layout, "bfloat16", n, strategy="stream").slice
                for n in (1, 7, 999)
            ]
            fields = ("channels", "channel_slices", "rows", "row_slices")
            assert len({tuple(getattr(p, name) for name in fields) for p in pieces}) == 1


def test_split_depends_on_the_batch_in_workspace_and_traffic_only() -> None:
    for layout in cases.LAYOUTS:
        plans = [
            _core.plan(n, 48, 12544, 4, "bfloat16", layout, "float32", True, strategy="split")
            for n in (1, 999)
        ]
        assert len({(p.vec, p.split.lanes, p.split.splits) for p in plans}) == 1
        assert plans[0].forward_workspace_bytes * 999 == plans[1].forward_workspace_bytes


def test_without_samples_only_the_weight_gradients_are_written() -> None:
    for strategy in STRATEGIES:
        chosen = _core.plan(0, 8, 16, 2, "float32", "nchw", "float32", True, strategy=strategy)
        assert (chosen.forward.launches, chosen.backward.launches) == (0, 1)
        assert chosen.forward.read == chosen.forward.written == chosen.backward.read == 0
        assert chosen.backward.written == 2 * 8 * 2 * 4


def test_what_only_split_can_run() -> None:
    """float64, misaligned tensors, channels that fill no vectors: no other strategy takes them."""
    for arguments, reason in (
        ((2, 64, 49, 4, "float64", "nchw", "float64", True), "float64"),
        ((2, 64, 49, 4, "bfloat16", "nchw", "bfloat16", False), "16-byte boundary"),
        ((2, 63, 49, 4, "bfloat16", "nhwc", "bfloat16", True), "channels do not fill"),
        ((2, 63, 49, 4, "bfloat16", "nchw", "bfloat16", True), "channels do not fill"),
        ((2, 64, 2**26, 4, "bfloat16", "nchw", "bfloat16", True), "2\\^31"),
        ((2, 2**27, 1, 4, "bfloat16", "nhwc", "bfloat16", True), "2\\^31"),
    ):
        assert _core.plan(*arguments).strategy == "split"  # type: ignore[arg-type]
        for strategy in ("stream", "resident"):
            with pytest.raises(ValueError, match=f"strategy {strategy}: .*{reason}"):
                _core.plan(*arguments, strategy=strategy)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [1, 3, 4096])
@pytest.mark.parametrize("c", [8, 24, 1000, 8192])
@pytest.mark.parametrize("s", [1, 4, 49, 6400, 512 * 512])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_from_the_smallest_to_the_largest(layout: str, s: int, c: int, n: int) -> None:
    for dtype in ("bfloat16", "float32"):
        for r in (1, c // 4, c):
            plan = _core.plan(n, c, s, r, dtype, layout, "float32", True)
            if plan.strategy == "split":
                continue
            piece = plan.slice
            assert piece.shared_bytes <= DEVICES["H200"].shared_bytes
            assert piece.samples * piece.channels * s * c > 0
            assert piece.lag >= piece.channel_slices * piece.row_slices - 1
            assert plan.forward.x == n * c * s * SIZES[dtype]


def numbers(value: object) -> Iterator[tuple[str, int]]:
    """Every number of a plan and of its parts, with its name."""
    for name in dir(value):
        part = None if name.startswith("_") else getattr(value, name)
        if isinstance(part, int):
            yield name, part
        elif part is not None and not callable(part) and not isinstance(part, str):
            yield from numbers(part)


@pytest.mark.parametrize("strategy", ["", *STRATEGIES])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize(("n", "c", "s"), [(1, 1, 16), (1, 8, 1), (4096, 8, 2)])
def test_the_widest_squeeze_does_not_wrap_around(
    n: int, c: int, s: int, layout: str, strategy: str
) -> None:
    """R up to 2^31: no size is negative, and shared memory does not shrink as R grows."""
    least = dict.fromkeys(STRATEGIES, 0)
    for r in (8, 1000, *(2**power + extra for power in range(20, 32) for extra in (-1, 0))):
        try:
            plan = _core.plan(n, c, s, r, "float32", layout, "float32", True, strategy=strategy)
        except ValueError:
            continue
        found = dict(numbers(plan))
        assert all(value >= 0 for value in found.values()), (r, found)
        assert least[plan.strategy] <= found["shared_bytes"] <= DEVICES["H200"].shared_bytes
        least[plan.strategy] = found["shared_bytes"]


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
    with pytest.raises(ValueError, match="strategy must be split, stream or resident, got fast"):
        _core.plan(1, 8, 4, 2, "float32", "nchw", "float32", True, strategy="fast")
    with pytest.raises(ValueError, match=r"device must be one of H200, .*, got GTX"):
        _core.known_device("GTX")


def test_explain_reads_the_tensors() -> None:
    x = torch.empty(128, 2048, 7, 7, dtype=torch.bfloat16, device="meta")
    chosen = explain(x, torch.empty(128, 2048, 1, 1, device="meta"))
    assert chosen.vec == 8
    assert "strategy T" in repr(chosen) and "squeeze ahead" in repr(chosen)
    last = x.to(memory_format=torch.channels_last)
    assert explain(last, torch.empty(128, 2048, device="meta")).slice.lanes == 12
    with pytest.raises(ValueError, match="reduce_weight must be"):
        explain(x, torch.empty(128, 2047, device="meta"))
