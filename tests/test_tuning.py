"""Tuning: what is measured is a table here; the rest is the real thing, on pretend GPUs.

What a tuner tries, and where the CUDA path looks its choice up: tests/test_candidates.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from seblock_cuda import SEBlock, __main__, explain, plan_files, tune, tune_op, tuning
from seblock_cuda.plan_files import Choice, Device
from seblock_cuda.plans import Problem
from seblock_cuda.tuning import Measured, Timing
from tests import cases
from tests.standin import control
from tests.test_op import run

ROOT = Path(__file__).resolve().parent.parent
GPU = Device("Some GPU", 90, 132, 50 * 2**20)
PROBLEM = Problem(128, 256, 3136, 16, "bfloat16", "bfloat16", "nhwc", "none", "forward", True)
SPLIT = Choice("split", 4)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SEBLOCK_PLANS", raising=False)
    monkeypatch.delenv("SEBLOCK_STRATEGY", raising=False)
    torch.ops.seblock_cuda.forget_plans()
    yield
    torch.ops.seblock_cuda.forget_plans()


def found(problem: Problem, device: Device = GPU) -> tuple[Any, ...]:
    """What the CUDA path finds for a problem."""
    return tuple(torch.ops.seblock_cuda.tuned_plan(*device.numbers, *problem.codes()))


NOTHING = (-1, 0, 0, 0, False)


# ---- the files


def test_kept_plans_are_used_by_a_new_process() -> None:
    path = plan_files.keep(GPU, {PROBLEM: SPLIT})
    assert path is not None and path.name == "Some-GPU-90.json"
    code = (
        "from tests.test_tuning import PROBLEM, found\n"
        "import torch\n"
        "print(found(PROBLEM), torch.cuda.is_initialized())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "(0, 4, 0, 0, False) False", done.stderr


def test_what_is_kept_is_added_to() -> None:
    other = Problem(**{**vars(PROBLEM), "direction": "backward"})
    plan_files.keep(GPU, {PROBLEM: Choice("resident"), other: SPLIT})
    plan_files.keep(GPU, {PROBLEM: Choice("stream", 0, 5, 528)})
    plan_files.load()
    assert found(PROBLEM) == (1, 0, 5, 528, False)
    assert found(other) == (0, 4, 0, 0, False)


WRITER = """
import sys
from dataclasses import replace
from seblock_cuda import plan_files
from tests.test_tuning import GPU, PROBLEM, SPLIT
for i in range(20):
    plan_files.keep(GPU, {replace(PROBLEM, c=8 * (2 * i + int(sys.argv[1]) + 1)): SPLIT})
"""


def test_two_processes_write_at_once() -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(which)], cwd=ROOT) for which in range(2)
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    path = plan_files.path_for(GPU)
    assert path is not None
    kept = json.loads(path.read_text())["plans"]
    assert sorted(entry["problem"]["c"] for entry in kept) == [8 * (i + 1) for i in range(40)]
    assert {file.suffix for file in path.parent.iterdir()} == {".json", ".lock"}


@pytest.mark.parametrize("what", ["version", "format"])
def test_plans_of_another_version_are_not_used(what: str) -> None:
    path = plan_files.keep(GPU, {PROBLEM: SPLIT})
    assert path is not None
    path.write_text(json.dumps({**json.loads(path.read_text()), what: "0.0.1"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan_files.load()
    assert found(PROBLEM) == NOTHING
    other = Problem(**{**vars(PROBLEM), "c": 64})
    plan_files.keep(GPU, {other: SPLIT})
    assert [entry["problem"]["c"] for entry in json.loads(path.read_text())["plans"]] == [64]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format": 1, "version": "0.1.0", "plans": 3}'],
    ids=["empty", "cut short", "a list", "nothing", "foreign"],
)
def test_a_broken_file_is_named_and_ignored(text: str) -> None:
    path = plan_files.path_for(GPU)
    assert path is not None
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.warns(UserWarning, match=r"Some-GPU-90\.json holds no plans and is ignored"):
        plan_files.load()
    plan_files.keep(GPU, {PROBLEM: SPLIT})
    plan_files.load()
    assert found(PROBLEM)[0] == 0


def test_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = tmp_path / "mine.json"
    monkeypatch.setenv("SEBLOCK_PLANS", str(named))
    plan_files.load()  # there is none yet
    assert plan_files.keep(GPU, {PROBLEM: SPLIT}) == named
    monkeypatch.setenv("SEBLOCK_PLANS", "off")
    plan_files.load()
    assert found(PROBLEM) == NOTHING and plan_files.keep(GPU, {PROBLEM: SPLIT}) is None
    monkeypatch.setenv("SEBLOCK_PLANS", str(named))
    plan_files.load()
    assert found(PROBLEM)[0] == 0


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing goes on where the user has no folder."""

    def expanded(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", expanded)
    plan_files.load()


def test_a_file_of_somebody_else_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = tmp_path / "mine.json"
    monkeypatch.setenv("SEBLOCK_PLANS", str(named))
    named.write_text('{"precious": 1}')
    with pytest.raises(OSError, match=r"mine\.json holds something else than plans"):
        plan_files.keep(GPU, {PROBLEM: SPLIT})
    assert named.read_text() == '{"precious": 1}'
    named.unlink()
    plan_files.keep(GPU, {PROBLEM: SPLIT})
    with pytest.raises(OSError, match="is of another GPU, Some GPU"):
        plan_files.keep(Device("Another", 80, 108, 40 * 2**20), {PROBLEM: SPLIT})


def test_shipped_plans_give_way_to_tuned_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_files, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setenv("SEBLOCK_PLANS", str(tmp_path / "shipped" / "some.json"))
    other = Problem(**{**vars(PROBLEM), "c": 64})
    plan_files.keep(GPU, {PROBLEM: SPLIT, other: SPLIT})
    monkeypatch.delenv("SEBLOCK_PLANS")
    plan_files.keep(GPU, {PROBLEM: Choice("resident")})
    plan_files.load()
    assert found(PROBLEM) == (2, 0, 0, 0, False) and found(other) == (0, 4, 0, 0, True)


# ---- the problems of a model


class Network(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        self.extend([SEBlock(8, 1 / 2), SEBlock(8, 1 / 2), nn.Dropout()])


def test_the_problems_of_a_model() -> None:
    model = Network().train()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    problems = tuning.collect(model, torch.randn(4, 3, 6, 6, generator=torch.Generator()))
    assert problems == [  # two alike are one
        Problem(4, 8, 36, 4, "float32", "float32", "nchw", "none", direction, True)
        for direction in ("forward", "backward")
    ]
    assert len(tuning.collect(model, torch.zeros(4, 3, 6, 6), training=False)) == 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_without_se() -> None:
    assert tuning.collect(nn.Sequential(nn.Conv2d(3, 8, 1)), torch.zeros(1, 3, 4, 4)) == []
    assert "nothing to tune" in str(tuning.Tuning([], 0, None))


def test_without_a_gpu() -> None:
    with pytest.raises(RuntimeError, match="tuning needs a GPU"):
        tune(SEBlock(8, 1 / 2), torch.zeros(1, 8, 4, 4))


# ---- measuring, by a clock of its own


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

    monkeypatch.setattr(tuning, "_Inputs", FakeInputs)
    monkeypatch.setattr(plan_files, "use", use)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(tuning, "SECONDS", 1e9)
    rule, best, loser = Choice("split"), Choice("stream"), Choice("resident")
    FakeInputs.takes = {rule: 3.0, best: 1.0, loser: 2.0, "plain": 9.0, "copy": 0.5}
    FakeInputs.calls, FakeInputs.made = [], 0
    found = tuning.measure(PROBLEM, [rule, best, loser], GPU, torch.device("cpu"))
    assert [timing.ms for timing in found.candidates] == [3.0, 1.0, 2.0]
    assert (found.plain.ms, found.copy.ms) == (9.0, 0.5)
    counts = {what: sum(ran == what for ran, _ in FakeInputs.calls) for what in FakeInputs.takes}
    every = 1 + tuning.CALLS * tuning.MOST_ROUNDS  # one to warm up
    assert counts == {
        **dict.fromkeys((rule, best, "plain", "copy"), every),
        loser: 1 + tuning.CALLS * tuning.LEAST_ROUNDS,
    }
    turns = [what for what, _ in FakeInputs.calls[5:20]]
    assert turns == [what for what in FakeInputs.takes for _ in range(tuning.CALLS)]
    # what a call reads is not in the cache: in between comes more than twice of what that holds
    sets = [number for _, number in FakeInputs.calls]
    assert sets[: FakeInputs.made + 1] == [*range(FakeInputs.made), 0]
    assert FakeInputs.made * 2 * 4 * 2**20 > 2 * GPU.l2_bytes


# ---- the whole of it, on a pretend GPU

SHAPE = (16, 24, (8, 8), 4)


class Table:
    """Takes the place of `measure`: `best` takes 1 ms, the others 2, the rule's own 3."""

    def __init__(self, best: str, plain: float = 9.0, spread: float = 1.0) -> None:
        self.best, self.plain, self.spread = best, plain, spread
        self.asked: list[Problem] = []

    def __call__(self, problem: Problem, choices: Sequence[Choice], *_: object) -> Measured:
        self.asked.append(problem)
        times = [3.0, *[2.0] * (len(choices) - 1)]
        times[[choice.strategy for choice in choices].index(self.best)] = 1.0
        timings = [Timing(ms, ms, ms * self.spread) for ms in times]
        return Measured(timings, Timing(*[self.plain] * 3), Timing(0.5, 0.5, 0.5))


def on_device(device: str = "cuda:1") -> tuple[SEBlock, torch.Tensor, cases.Problem]:
    problem = control.moved(cases.make_problem(SHAPE), device)
    return SEBlock(24, 1 / 6).to(device), problem.x, problem


@pytest.mark.standin
def test_tuned_kept_used_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, problem = on_device()
    expected = {name: value.cpu() for name, value in run(problem).items()}
    before = explain(x, layer)
    assert before.sources == ("rule", "rule")
    for best in ("stream", "split", "resident"):
        monkeypatch.setattr(tuning, "measure", table := Table(best))
        done = tune(layer, x)
        assert [each.direction for each in table.asked] == ["forward", "backward"]
        assert [row.best.strategy for row in done] == [best, best]
        assert str(done.path) in str(done) and "report" not in str(done)
        plans = explain(x, layer)
        assert plans.strategy == best and plans.sources == ("tuned", "tuned")
        another = explain(x.cpu().to("cuda:0"), layer.to("cuda:0"))
        assert another.sources == ("rule", "rule")
        layer.to("cuda:1")
        for name, value in run(problem).items():
            assert torch.equal(value.cpu(), expected[name]), (best, name)
    torch.ops.seblock_cuda.forget_plans()
    plan_files.load()
    assert explain(x, layer).sources == ("tuned", "tuned")


@pytest.mark.standin
def test_the_rule_stays_where_nothing_is_known_to_be_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, x, _ = on_device()
    rule = explain(x, layer)
    other = "split" if rule.forward.strategy != "split" else "stream"
    monkeypatch.setattr(tuning, "measure", Table(other, plain=0.1, spread=2.0))
    done = tune(layer, x, training=False)
    (row,) = done
    assert not row.quiet and row.best.strategy == rule.forward.strategy
    assert "not quiet" in str(done) and "plain PyTorch is faster for 1" in str(done)
    assert not list(tune_op([row.problem], device="cuda:1", budget=-1.0))
    assert "1 problems are left" in str(tune_op([row.problem], device="cuda:1", budget=-1.0))


@pytest.mark.standin
def test_what_was_measured_before_an_interrupt_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, _ = on_device()
    table = Table("split")

    def measure(problem: Problem, choices: Sequence[Choice], model: Device, _: object) -> Measured:
        plan_files.use(model, {problem: choices[-1]})
        if problem.direction == "backward":
            raise KeyboardInterrupt
        return table(problem, choices)

    rule = explain(x, layer).backward.strategy
    monkeypatch.setattr(tuning, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        tune(layer, x)
    plans = explain(x, layer)
    assert (plans.forward.strategy, plans.backward.strategy) == ("split", rule)
    torch.ops.seblock_cuda.forget_plans()
    plan_files.load()
    assert explain(x, layer).sources == ("tuned", "rule")


@pytest.mark.standin
def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder, whoever asks
    monkeypatch.setattr(tuning, "measure", Table("split"))
    layer, x, _ = on_device()
    with pytest.warns(UserWarning, match="the plans are used, but cannot be kept"):
        done = tune(layer, x)
    assert done.path is None and "for this process only" in str(done)
    assert explain(x, layer).sources == ("tuned", "tuned")


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
        monkeypatch.setattr(tuning, name, few)
    # torch's own kernels are not here
    monkeypatch.setattr(tuning._Inputs, "plain", lambda self: None)
    monkeypatch.setattr(tuning._Inputs, "copy", lambda self: None)
    monkeypatch.setattr(tuning._Inputs, "_plain", lambda self, *_: None)
    monkeypatch.setattr(tuning, "_random", random_of_the_cpu)
    device = torch.device("cuda:1")
    for direction in ("forward", "backward"):
        dtypes, how = ("bfloat16", "float32"), (layout, tail or "none", direction, True)
        problem = Problem(5, 24, 64, 4, *dtypes, *how)
        limits = tuning.device_limits(device)
        choices = [tuning._choice(plan) for plan in problem.candidates(limits)]
        assert {choice.strategy for choice in choices} == {"split", "stream", "resident"}
        control.launches()
        with torch.cuda.device(device):
            found = tuning.measure(problem, choices, Device.of(device), device)
        assert [timing.ms for timing in found.candidates] == [1.0] * len(choices)
        kernels = " ".join(launch.kernel for launch in control.launches())
        assert "stream" in kernels and "resident" in kernels and "squeeze" in kernels


def test_the_table_of_the_environment_is_not_asked_for_off(tmp_path: Path) -> None:
    """Importing reads nothing with SEBLOCK_PLANS=off."""
    plan_files.keep(GPU, {PROBLEM: SPLIT})
    code = "from tests.test_tuning import PROBLEM, found\nprint(found(PROBLEM))"
    environ = {**os.environ, "SEBLOCK_PLANS": "off"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(NOTHING), done.stderr


@pytest.mark.standin
def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuning, "measure", Table("split"))
    monkeypatch.setenv("SEBLOCK_PLANS", "off")  # put back at the end: the command sets it
    layers, plans, table = (tmp_path / name for name in ("layers.csv", "plans.json", "table.txt"))
    layers.write_text("channels,height,width,reduced,batch\n24,8,8,4,128\n")
    files = ["--workloads", str(layers), "--plans", str(plans), "--table", str(table)]
    assert __main__.main(["tune", *files, "--batch", "16", "--device", "cuda:1"]) == 0
    assert table.read_text() == capsys.readouterr().out
    assert [entry["choice"]["strategy"] for entry in json.loads(plans.read_text())["plans"]] == [
        "split",
        "split",
    ]
    layer, x, _ = on_device()
    assert explain(x, layer).sources == ("tuned", "tuned")


def test_the_command_knows_the_layers_of_a_model() -> None:
    pytest.importorskip("timm")
    words = "tune --timm mobilenetv3_small_050 --batch 2 --dtype bfloat16 --channels-last"
    options = __main__._options([*words.split(), "--device", "cpu"])
    problems = __main__._problems_of_timm(options)
    assert {each.direction for each in problems} == {"forward", "backward"}
    assert {(each.n, each.dtype, each.weight_dtype) for each in problems} == {
        (2, "bfloat16", "bfloat16")
    }
    assert "nhwc" in {each.layout for each in problems} and len(problems) > 8
    mixed = __main__._options([*words.split(), "--device", "cpu", "--autocast", "--inference"])
    assert {(each.weight_dtype, each.direction) for each in __main__._problems_of_timm(mixed)} == {
        ("float32", "forward")
    }


def test_the_command_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["tune", "--timm", "seresnet50"]) == 1
    assert capsys.readouterr().err.startswith("error: tuning needs a GPU")
