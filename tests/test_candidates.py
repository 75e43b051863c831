"""What a tuner tries (csrc/candidates.h), and where its choice is kept and found (csrc/tuned.h)."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from itertools import product
from types import ModuleType

import pytest
import torch
from torch import Tensor

from seblock_cuda import _core, _ops
from seblock_cuda.plans import STRATEGIES, Problem, device_limits
from tests import cases
from tests.simt import kernels
from tests.simt.audit import plans_of
from tests.standin import control
from tests.test_bits import results, same
from tests.test_op import run

DEVICES = {name: _core.known_device(name) for name in _core.known_devices()}
DIRECTIONS = ("forward", "backward")


def numbers(plan: _core.Plan) -> tuple[str, int, int, int]:
    return plan.strategy, plan.group, plan.lag, plan.blocks


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("device", DEVICES)
def test_candidates_of_every_workload(device: str, direction: str) -> None:
    limits, seen = DEVICES[device], set()
    for workload, layout, tail, n in product(
        cases.workloads(), ("nchw", "nhwc"), ("none", "add", "add_relu"), (0, 1, 128, 4096)
    ):
        s = workload.height * workload.width
        of = (n, workload.channels, s, workload.reduced, "bfloat16", layout, "bfloat16", True)
        more = {"tail": tail, "direction": direction, "limits": limits}
        found = _core.candidates(*of, **more)  # type: ignore[arg-type]
        rule = _core.plan(*of, **more)  # type: ignore[arg-type]
        assert numbers(found[0]) == numbers(rule)
        assert 1 <= len(found) <= 12 and len(set(map(numbers, found))) == len(found)
        for plan in found:
            strategy, group, lag, blocks = numbers(plan)
            again = _core.plan(*of, **more, strategy=strategy, group=group, lag=lag, blocks=blocks)  # type: ignore[arg-type]
            assert numbers(again) == numbers(plan)
            assert plan is found[0] or plan.traffic.window <= limits.l2_bytes
            assert group == 1 or group < 2 * max(n, 1) or plan is found[0]
        seen |= {plan.strategy for plan in found}
    assert seen == ({"split"} if device == "T4" else {"split", "stream", "resident"}) or (
        device == "T4" and seen == {"split", "resident"}
    )


@pytest.mark.parametrize("tail", [None, "add_relu"])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", [(9, 24, (8, 8), 4), (17, 64, (4, 4), 8)], ids=str)
def test_all_candidates_give_the_same_bits(
    simt: ModuleType, shape: tuple[int, int, tuple[int, int], int], layout: str, tail: str | None
) -> None:
    """Run in the harness, each candidate of either direction for both."""
    problem = cases.make_problem(shape, torch.bfloat16, layout, tail=tail)
    expected = results(kernels.run(simt, problem))
    n, c, (h, w), r = shape
    of = (n, c, h * w, r, "bfloat16", cases.LAYOUTS[kernels.layout_of(problem.x)], "bfloat16", True)
    found = {
        numbers(plan)
        for direction in DIRECTIONS
        for plan in _core.candidates(
            *of, tail=tail or "none", direction=direction, limits=kernels.LIMITS
        )
    }
    assert {strategy for strategy, *_ in found} == {"split", "stream", "resident"}
    for strategy, *rest in sorted(found):
        forced = kernels.Forced(*rest)
        assert plans_of(problem, strategy, forced)
        same(results(kernels.run(simt, problem, strategy=strategy, forced=forced)), expected, rest)


# ---- the table, on a pretend GPU

OP = torch.ops.seblock_cuda
SHAPE = (16, 24, (8, 8), 4)


@pytest.fixture
def _nothing_tuned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SEBLOCK_STRATEGY", raising=False)
    OP.forget_plans()
    yield
    OP.forget_plans()


table = pytest.mark.usefixtures("_nothing_tuned")


def use(
    n: int, direction: int, strategy: int, group: int = 0, lag: int = 0, blocks: int = 0
) -> None:
    device = torch.cuda.get_device_properties(0)
    facts = (10 * device.major + device.minor, device.multi_processor_count, device.L2_cache_size)
    of_layer = (24, 64, 4, 0, 0, 0, 0)  # C, S, R; float32 twice, nchw, no tail
    OP.use_plan(*facts, n, *of_layer, direction, True, strategy, group, lag, blocks, False)


def launched(n: int = 16) -> tuple[dict[str, Tensor], list[str]]:
    """The results, and the names of the kernels."""
    there = control.moved(cases.make_problem((n, *SHAPE[1:])), "cuda")
    control.launches()
    found = {name: value.cpu() for name, value in run(there).items()}
    return found, [launch.kernel for launch in control.launches() if "memset" not in launch.kernel]


def streams(n: int = 16) -> list[bool]:
    return ["stream" in kernel for kernel in launched(n)[1] if "gradients" not in kernel]


@pytest.mark.standin
@table
def test_what_was_tuned_is_run_with_the_same_bits() -> None:
    expected, _ = launched()
    for strategy, name in enumerate(("split", "stream", "resident")):
        for direction in range(2):
            use(16, direction, strategy)
        found, kernels_run = launched()
        for key, value in expected.items():
            assert torch.equal(found[key], value), (name, key)
        if name != "split":
            assert sum(name in kernel for kernel in kernels_run) == 2, kernels_run
        else:
            assert len(kernels_run) == 9, kernels_run


@pytest.mark.standin
@table
def test_every_candidate_is_run_with_the_same_bits() -> None:
    expected, _ = launched()
    limits = device_limits(torch.device("cuda:0"))
    for direction, name in enumerate(DIRECTIONS):
        problem = Problem(*(16, 24, 64, 4), "float32", "float32", "nchw", "none", name, True)
        plans = problem.candidates(limits)
        assert len(plans) > 4
        for plan in plans:
            use(16, direction, STRATEGIES.index(plan.strategy), *numbers(plan)[1:])
            found, kernels_run = launched()
            assert (
                any(plan.strategy in kernel for kernel in kernels_run) or plan.strategy == "split"
            )
            for key, value in expected.items():
                assert torch.equal(found[key], value), (numbers(plan), key)


@pytest.mark.standin
@table
def test_plans_change_while_calls_run() -> None:
    expected, _ = launched()
    done = threading.Event()

    def change() -> None:
        for turn in itertools.count():
            if done.is_set():
                return
            for direction in range(2):
                use(16, direction, (turn + direction) % 3)
            if turn % 7 == 0:
                OP.forget_plans()

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(8):
            found, _ = launched()
            assert all(torch.equal(found[key], value) for key, value in expected.items())
    finally:
        done.set()
        changing.join()


@pytest.mark.standin
@table
def test_one_direction_alone() -> None:
    use(16, 0, 1)
    use(16, 1, 2)
    assert streams() == [True, False]


@pytest.mark.standin
@table
def test_the_nearest_batch_within_a_factor_of_two() -> None:
    for direction in range(2):
        use(16, direction, 2)
        use(5, direction, 1, lag=5, blocks=3)
    assert not any(streams(16)) and all(streams(5)) and all(streams(8)) and all(streams(3))
    assert not any(streams(10)) and not any(streams(32))
    OP.forget_plans()
    before = launched(2)[1], launched(40)[1]
    for direction in range(2):
        use(16, direction, 1)
    assert (launched(2)[1], launched(40)[1]) == before


@pytest.mark.standin
@table
def test_the_environment_overrules_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for direction in range(2):
        use(16, direction, 1)
    assert all(streams())
    monkeypatch.setenv("SEBLOCK_STRATEGY", "resident")
    assert not any(streams())


@pytest.mark.standin
@table
def test_numbers_that_cannot_be_run_leave_the_rule() -> None:
    expected, as_the_rule = launched()
    for direction in range(2):
        use(16, direction, 0, group=99)
    found, kernels_run = launched()
    assert kernels_run == as_the_rule and torch.equal(found["y"], expected["y"])


def test_an_unknown_strategy_is_refused() -> None:
    _ops.require()
    with pytest.raises(RuntimeError, match="unknown strategy"):
        OP.use_plan(*[1] * 12, True, 3, 0, 0, 0, False)
