"""Tuning: what is measured is a table here; the rest is the real thing, on pretend GPUs.

What a tuner tries, and where the CUDA path looks its choice up: tests/test_candidates.py. The
files: tests/test_plan_files.py. The clock: tests/test_measuring.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from seblock_cuda import SEBlock, __main__, explain, plan_files, tune, tune_op, tuning
from seblock_cuda.measuring import Measured, Timing
from seblock_cuda.plan_files import Choice, Device
from seblock_cuda.plans import Problem
from tests import cases
from tests.standin import control
from tests.test_op import run
from tests.test_plan_files import nothing_tuned

__all__ = ["nothing_tuned"]

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
