"""The plan is a pure function: checked over the whole workload table and all devices, on none."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from seblock_cuda import _core
from tests import cases

SIZES = {"float32": 4, "bfloat16": 2, "float64": 8}
DEVICES = {name: _core.known_device(name) for name in _core.known_devices()}
STRATEGIES = ["split", "stream", "resident"]
DIRECTIONS = ["forward", "backward"]
TAILS = ["none", "add", "add_relu"]
TASK = SCRATCH = 16 * 1024  # bytes of x that a block is at; of its shared memory, what stages use

both_directions = pytest.mark.parametrize("direction", DIRECTIONS)


def plan(*shape: int, dtype: str = "bfloat16", layout: str = "nchw", **more: Any) -> _core.Plan:
    """Of a shape (N, C, S, R)."""
    return _core.plan(*shape, dtype, layout, dtype, more.pop("aligned", True), **more)  # type: ignore[call-arg]


def row(workload: cases.Workload, n: int = 0) -> tuple[int, int, int, int]:
    s = workload.height * workload.width
    return n or workload.batch, workload.channels, s, workload.reduced


@both_directions
@pytest.mark.parametrize("strategy", ["", *STRATEGIES])
@pytest.mark.parametrize("device", DEVICES)
def test_every_workload_on_every_device(device: str, strategy: str, direction: str) -> None:
    """What is told of a plan is true of the problem, and it keeps to the device's limits."""
    limits, forward = DEVICES[device], direction == "forward"
    for workload, layout, tail, n in product(
        cases.workloads(), cases.LAYOUTS, TAILS, (1, 128, 4096)
    ):
        _, c, s, r = row(workload)
        chosen = {"layout": layout, "direction": direction, "tail": tail, "strategy": strategy}
        try:
            made = plan(n, c, s, r, limits=limits, **chosen)
        except ValueError:
            assert strategy == "resident" or (device, strategy) == ("T4", "stream")
            continue
        split, stream = made.strategy == "split", made.strategy == "stream"
        sample, channels, hidden = c * s * 2, n * c * 4, n * r * 4
        x, masked, traffic = n * sample, tail == "add_relu", made.traffic
        first = (1 if forward else 2) + split + (forward and tail != "none")
        assert traffic.x == first * x + (0 if forward else masked * x // 16)
        assert (traffic.again, traffic.launches) == (x * stream, 1 + 3 * split + (not forward))
        assert traffic.weights == -(-n // made.group) * 4 * c * r
        assert traffic.read == traffic.x + traffic.weights + traffic.small
        assert traffic.small > channels + hidden and traffic.written > x + channels + hidden
        if x > 2**26:  # the rest is little
            assert traffic.small < 0.4 * x
            assert traffic.written < 1.3 * x + (not forward) * (masked * x + 4 * c * r)
        assert made.workspace_bytes >= channels + (not forward) * (2 * channels + hidden)
        assert made.vectors and made.overlap == (split and limits.capability >= 90)
        assert 1 <= made.group <= (8 if split else 1)
        assert made.shared_bytes == (0 if split or stream else SCRATCH + sample)
        assert made.shared_bytes <= limits.shared_bytes
        assert stream <= made.lag <= stream * n
        assert stream <= made.blocks <= stream * limits.multiprocessors * limits.stream_blocks
        if stream and strategy == "" and tail == "none" and x > 2**26 and made.lag > 1:
            assert traffic.window <= limits.l2_bytes  # so the rule has it; else it is told


@both_directions
def test_the_rule(direction: str) -> None:
    """Small maps stay in shared memory, large ones stream, wide layers and old devices split."""

    def chosen(c: int, s: int, r: int, shared: int = 0, **other: int) -> str:
        limits = {"capability": 90, "multiprocessors": 132, "l2_bytes": 50 * 2**20} | other
        least = {"stream_blocks": 4, "shared_bytes": SCRATCH + shared} | other
        device = _core.DeviceLimits(**(least | limits))
        return plan(128, c, s, r, direction=direction, limits=device).strategy

    # a sample fits; the weights are at most twice as large: R <= S
    assert chosen(256, 49, 49, shared=256 * 49 * 2) == "resident"
    assert chosen(256, 49, 49, shared=256 * 49 * 2 - 1) == "stream"
    assert chosen(256, 49, 50, shared=256 * 49 * 2) == "stream"
    # 100 000 bytes of weights
    assert chosen(1000, 1000, 25, capability=80) == "stream"
    assert chosen(1000, 1000, 26) == chosen(1000, 1000, 25, capability=75) == "split"
    # what 528 blocks are at is a third of 0.6 of the L2
    enough = 3 * 528 * TASK * 10 // 6
    assert chosen(1000, 1000, 25, l2_bytes=enough + 16) == "stream"
    assert chosen(1000, 1000, 25, l2_bytes=enough - 16) == "split"
    assert chosen(1000, 1000, 25, l2_bytes=enough - 16, multiprocessors=131) == "stream"
    assert chosen(1000, 1000, 25, l2_bytes=enough - 16, stream_blocks=3) == "stream"


def test_the_numbers_of_the_rule() -> None:
    # 0.6 of 50 MiB for 2.7 (backward 3.9) samples of 1 MiB; 1.4 times that if x is 64 MiB or less
    lags = [plan(n, 512, 1024, 16, direction=d).lag for d, n in product(DIRECTIONS, (64, 65))]
    assert lags == [15, 11, 10, 7]
    assert plan(3, 512, 1024, 16).lag == 3  # no more than there are
    assert plan(3, 512, 2**16, 16).lag == 1  # a sample of 64 MiB
    # no more blocks than tasks
    assert plan(128, 512, 1024, 16).blocks == 4 * 132
    assert plan(1, 256, 1024, 4).blocks == 2 * 256 * 1024 * 2 // TASK
    # halved while the products would occupy fewer than half of the multiprocessors
    for n, group in ((66 * 8, 8), (65 * 8, 4), (33 * 8, 4), (32 * 8, 2), (64, 1)):
        assert plan(n, 64, 49, 32, strategy="split").group == group


@both_directions
@pytest.mark.parametrize("tail", TAILS)
def test_the_window_has_the_blocks_in_flight(direction: str, tail: str) -> None:
    """Between two reads of x: the samples and tasks ahead, of every tensor that is moved."""
    tensors = {"forward": (2, 3, 3), "backward": (3, 3, 4)}[direction][TAILS.index(tail)]
    more = {"direction": direction, "tail": tail, "strategy": "stream"}
    for lag, blocks, ahead in ((5, 100, 5 * 2**20 + 100 * TASK), (128, 100, 128 * 2**20)):
        window = plan(128, 512, 1024, 16, lag=lag, blocks=blocks, **more).traffic.window
        assert window == tensors * ahead + (ahead // 16 if tail == "add_relu" else 0)


def test_what_is_forced_is_in_the_plan() -> None:
    assert [plan(128, 256, 49, 16, strategy=name).strategy for name in STRATEGIES] == STRATEGIES
    groups = range(1, 9)
    assert [plan(9, 8, 49, 4, strategy="split", group=g).group for g in groups] == [*groups]
    made = plan(128, 256, 49, 16, strategy="stream", group=1, lag=128, blocks=7)
    assert (made.group, made.lag, made.blocks) == (1, 128, 7)


@pytest.mark.parametrize(
    ("forced", "reason"),
    [
        ({"strategy": "split", "group": 9}, "group must be 1 to 8, got 9"),
        ({"strategy": "split", "group": -1}, "group must be 1 to 8, got -1"),
        ({"strategy": "stream", "group": 2}, "group must be 1 to 1, got 2"),
        ({"strategy": "resident", "group": 2}, "group must be 1 to 1, got 2"),
        ({"strategy": "stream", "lag": 129}, "lag must be 1 to 128, got 129"),
        ({"strategy": "stream", "blocks": -1}, "blocks must be 1 to .*, got -1"),
        ({"strategy": "split", "lag": 1}, "lag and blocks are numbers of strategy stream"),
        ({"strategy": "resident", "blocks": 1}, "lag and blocks are numbers of strategy stream"),
        ({"strategy": "fast"}, "strategy must be split, stream or resident, got fast"),
        ({"strategy": "stream", "limits": DEVICES["T4"]}, "strategy stream: .*capability 8.0"),
        ({"direction": "up"}, "direction must be forward or backward, got up"),
        ({"tail": "relu"}, "tail must be none, add or add_relu, got relu"),
        ({"dtype": "int8"}, "dtype must be .*, got int8"),
        ({"layout": "hwc"}, "layout must be nchw or nhwc, got hwc"),
    ],
)
def test_what_is_refused(forced: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        plan(128, 256, 49, 16, **forced)


def test_impossible_problems_are_refused() -> None:
    for shape in ((-1, 8, 4, 2), (1, 0, 4, 2), (1, 8, 0, 2), (1, 8, 4, 0)):
        with pytest.raises(ValueError, match="at least"):
            plan(*shape)
    with pytest.raises(ValueError, match=r"device must be one of H200, .*, got GTX"):
        _core.known_device("GTX")


@both_directions
@pytest.mark.parametrize(
    ("shape", "more", "reason"),
    [
        ((2, 64, 49, 4), {"dtype": "float64"}, "float64"),
        ((2, 64, 49, 4), {"aligned": False}, "16-byte boundary"),
        ((2, 63, 8, 4), {"layout": "nhwc"}, "do not fill"),
        ((2, 63, 49, 4), {}, "do not fill"),
        ((2, 63, 1, 4), {}, "do not fill"),
        ((2, 64, 2**26, 4), {}, "2\\^31 elements"),
        ((2, 2**27, 16, 4), {"layout": "nhwc"}, "2\\^31 elements"),
    ],
)
def test_what_only_split_can_run(
    shape: tuple[int, ...], more: dict[str, Any], reason: str, direction: str
) -> None:
    made = plan(*shape, direction=direction, **more)
    assert (made.strategy, made.vectors) == ("split", False)
    for strategy in ("stream", "resident"):
        with pytest.raises(ValueError, match=f"strategy {strategy}: .*{reason}"):
            plan(*shape, strategy=strategy, direction=direction, **more)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_without_samples_only_the_weight_gradients_are_written(strategy: str) -> None:
    for direction, launches, written in (("forward", 0, 0), ("backward", 1, 2 * 8 * 2 * 2)):
        traffic = plan(0, 8, 16, 2, strategy=strategy, direction=direction).traffic
        found = (traffic.launches, traffic.read, traffic.written, traffic.window)
        assert found == (launches, 0, written, 0)


def numbers(value: object) -> Iterator[tuple[str, int]]:
    """Every number of a plan and of its parts, with its name."""
    for name in dir(value):
        part = None if name.startswith("_") else getattr(value, name)
        if isinstance(part, int):
            yield name, part
        elif part is not None and not callable(part) and not isinstance(part, str):
            yield from numbers(part)


SIDES = [1, 8, 1000, 2**20, 2**27, 2**30, 2**31 - 1, 2**31, 2**36, 2**38, 2**62, 2**63 - 1]


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("dtype", SIZES)
def test_sizes_do_not_wrap_around(dtype: str, layout: str) -> None:
    """Up to the ends of 64 bits there is a refusal, or a plan with numbers that are true."""
    size, strategies = SIZES[dtype], set()
    for n, c, s, r in product(SIDES, repeat=4):
        try:
            made = plan(
                n, c, s, r, dtype=dtype, layout=layout, direction="backward", tail="add_relu"
            )
        except ValueError as reason:
            small = max(n * c * s, n * r, c * r) <= 2**38 and max(c, r) <= 2**30
            assert small == ("more than 2^31 tasks" in str(reason)), (n, c, s, r, reason)
            continue
        strategies.add(made.strategy)
        found, x = dict(numbers(made)), n * c * s * size
        rows, length = (n, c * s) if layout == "nchw" and s > 1 else (n * s, c)
        mask = rows * -(-length * size // 16)
        assert min(found.values()) >= 0, (n, c, s, r, found)
        assert found["x"] == (2 + (made.strategy == "split")) * x + mask
        assert found["weights"] == -(-n // made.group) * 2 * c * r * size
        assert found["written"] >= 2 * x + 2 * c * r * size
        assert found["workspace_bytes"] >= n * (3 * c + r) * max(4, size)
        assert found["shared_bytes"] in (0, SCRATCH + x // n)
        assert found["shared_bytes"] <= DEVICES["H200"].shared_bytes
    assert strategies == ({"split"} if dtype == "float64" else set(STRATEGIES))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_more_tasks_than_a_launch_can_have(strategy: str) -> None:
    most = 2**31 - 1 if strategy != "stream" else 2**30 - 1  # which has two for each sample
    assert plan(most, 8, 1, 1, strategy=strategy).strategy == strategy
    with pytest.raises(ValueError, match=f"strategy {strategy}: more than 2\\^31 tasks"):
        plan(most + 1, 8, 1, 1, strategy=strategy)
