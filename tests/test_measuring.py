"""The tuner's clock: turns, losers, inputs that are not in the cache; by a clock of its own."""

from __future__ import annotations

import pytest
import torch

from seblock_cuda import measuring, plan_files
from seblock_cuda.plan_files import Choice, Device
from seblock_cuda.plans import Problem, device_limits
from seblock_cuda.tuning import _choice
from tests.standin import control
from tests.test_plan_files import GPU, PROBLEM


class FakeInputs:
    """Calls take as many milliseconds as the table says of what runs."""

    clock, running = 0.0, Choice("split")
    takes: dict[Choice | str, float]
    calls: list[tuple[object, int]]  # what ran, on which set
    made = 0

    def __init__(self, *_: object) -> None:
        self.x = torch.empty(2**20)  # 4 MB
        self.number = FakeInputs.made
        FakeInputs.made += 1

    def _run(self, what: Choice | str) -> None:
        FakeInputs.clock += FakeInputs.takes[what]
        FakeInputs.calls.append((what, self.number))

    def call(self) -> None:
        self._run(FakeInputs.running)

    def plain(self) -> None:
        self._run("plain")

    def copy(self) -> None:
        self._run("copy")


class FakeEvent:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = FakeInputs.clock

    def elapsed_time(self, later: FakeEvent) -> float:
        return later.at - self.at


def test_measuring_takes_turns_and_drops_who_cannot_win(monkeypatch: pytest.MonkeyPatch) -> None:
    def use(_: Device, plans: dict[Problem, Choice]) -> None:
        (FakeInputs.running,) = plans.values()

    monkeypatch.setattr(measuring, "_Inputs", FakeInputs)
    monkeypatch.setattr(plan_files, "use", use)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(measuring, "SECONDS", 1e9)
    rule, best, loser = Choice("split"), Choice("stream"), Choice("resident")
    FakeInputs.takes = {rule: 3.0, best: 1.0, loser: 2.0, "plain": 9.0, "copy": 0.5}
    FakeInputs.calls, FakeInputs.made = [], 0
    found = measuring.measure(PROBLEM, [rule, best, loser], GPU, torch.device("cpu"))
    assert [timing.ms for timing in found.candidates] == [3.0, 1.0, 2.0]
    assert (found.plain.ms, found.copy.ms) == (9.0, 0.5)
    counts = {what: sum(ran == what for ran, _ in FakeInputs.calls) for what in FakeInputs.takes}
    every = 1 + measuring.CALLS * measuring.MOST_ROUNDS  # one to warm up
    assert counts == {
        **dict.fromkeys((rule, best, "plain", "copy"), every),
        loser: 1 + measuring.CALLS * measuring.LEAST_ROUNDS,
    }
    turns = [what for what, _ in FakeInputs.calls[5:20]]
    assert turns == [what for what in FakeInputs.takes for _ in range(measuring.CALLS)]
    # what a call reads is not in the cache: in between comes more than twice of what that holds
    sets = [number for _, number in FakeInputs.calls]
    assert sets[: FakeInputs.made + 1] == [*range(FakeInputs.made), 0]
    assert FakeInputs.made * 2 * 4 * 2**20 > 2 * GPU.l2_bytes


def random_of_the_cpu(*size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(size).to(dtype).to(device)


@pytest.mark.standin
@pytest.mark.parametrize("tail", [None, "add_relu"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_measuring_calls_everything_in_turns(
    layout: str, tail: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is, but that an event of a pretend GPU says one millisecond."""
    for name, few in {"CALLS": 1, "LEAST_ROUNDS": 1, "MOST_ROUNDS": 1, "MOST_SETS": 2}.items():
        monkeypatch.setattr(measuring, name, few)
    # torch's own kernels are not here
    monkeypatch.setattr(measuring._Inputs, "plain", lambda self: None)
    monkeypatch.setattr(measuring._Inputs, "copy", lambda self: None)
    monkeypatch.setattr(measuring._Inputs, "_plain", lambda self, *_: None)
    monkeypatch.setattr(measuring, "_random", random_of_the_cpu)
    device = torch.device("cuda:1")
    for direction in ("forward", "backward"):
        dtypes, how = ("bfloat16", "float32"), (layout, tail or "none", direction, True)
        problem = Problem(5, 24, 64, 4, *dtypes, *how)
        limits = device_limits(device)
        choices = [_choice(plan) for plan in problem.candidates(limits)]
        assert {choice.strategy for choice in choices} == {"split", "stream", "resident"}
        control.launches()
        with torch.cuda.device(device):
            found = measuring.measure(problem, choices, Device.of(device), device)
        assert [timing.ms for timing in found.candidates] == [1.0] * len(choices)
        kernels = " ".join(launch.kernel for launch in control.launches())
        assert "stream" in kernels and "resident" in kernels and "squeeze" in kernels
