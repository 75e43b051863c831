"""The page docs/maintainers/prediction.md is what the model says, and the model keeps to what no
machine can break.
"""

from __future__ import annotations

from itertools import product

import pytest

from benchmarks import predict
from benchmarks.dataflow import Simulation
from benchmarks.machine import CLOCK, Costs
from benchmarks.workloads import load
from seblock_cuda import _core

PAGE = (predict.ROOT / predict.PAGE).read_text()
WORKLOADS = {workload.name: workload for workload in load()}
SHAPE = (9, 64, 196, 8)  # N, C, S, R
HBM = predict.COPY["H100"] / CLOCK

every_way = pytest.mark.parametrize(
    ("strategy", "layout", "direction"),
    list(product(predict.STRATEGIES, predict.LAYOUTS, predict.DIRECTIONS)),
)


def cycles(strategy: str, layout: str, direction: str, **costs: float) -> float:
    limits = _core.known_device("H100")
    plan = _core.plan(
        *SHAPE, "bfloat16", layout, "bfloat16", True, "none", direction, limits, strategy
    )
    return Simulation(SHAPE, layout, direction, plan, Costs(**({"hbm": HBM} | costs))).run()


@every_way
def test_never_faster_than_the_bytes(strategy: str, layout: str, direction: str) -> None:
    """Of memory that is slow enough to be all that counts, the bytes are also nearly all."""
    n, c, s, _ = SHAPE
    x, units = 2 * n * c * s, 2 if direction == "forward" else 3
    assert cycles(strategy, layout, direction) >= units * x / HBM
    slow = cycles(strategy, layout, direction, hbm=0.1)
    assert units * x / 0.1 <= slow < 1.6 * units * x / 0.1


@every_way
def test_more_bandwidth_is_never_slower(strategy: str, layout: str, direction: str) -> None:
    for slow in (0.1 * HBM, HBM):
        before = cycles(strategy, layout, direction, hbm=slow)
        assert cycles(strategy, layout, direction, hbm=2 * slow) <= before
    assert cycles(strategy, layout, direction, l2=1.0) > cycles(strategy, layout, direction)


@every_way
def test_more_instructions_are_never_faster(strategy: str, layout: str, direction: str) -> None:
    times = [cycles(strategy, layout, direction, instructions=i) for i in (0.5, 1, 2, 4)]
    assert times == sorted(times) and times[0] < times[-1]


def test_every_row_is_in_the_table() -> None:
    rows = [line.strip("| ").split(" | ")[:2] for line in PAGE.splitlines() if " MB" not in line]
    found = [tuple(row) for row in rows[: rows.index(["## The bars"])] if row[0] in WORKLOADS]
    assert found == list(product(WORKLOADS, predict.LAYOUTS))


@pytest.mark.parametrize(
    ("row", "layout"), [("irse50_face/3", "nchw"), ("efficientnet_b0/1", "nhwc")]
)
def test_the_committed_figures_are_the_model_s(row: str, layout: str) -> None:
    """If not: python -m benchmarks.predict."""
    assert predict.line(WORKLOADS[row], layout) in PAGE.splitlines()
