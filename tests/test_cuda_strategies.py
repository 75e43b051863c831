"""Every strategy on a GPU, by force: against float64, with other work beside it, and very large.

The same on the SIMT harness, without a GPU: test_simt_kernels.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from seblock_cuda import _ops, explain, squeeze_excitation
from tests import cases
from tests.test_op import run

STRATEGIES = ["split", "stream", "resident"]
SHAPES = {
    **cases.SHAPES,
    "groups": (37, 64, (7, 7), 128),
    "many tasks": (9, 256, (56, 56), 16),  # several for each block of a launch
    "odd planes": (5, 48, (61, 67), 6),
    "several parts of a plane": (2, 8, (200, 200), 4),
    "wide maps": (3, 2688, (12, 12), 112),
    "largest plane": (1, 8, (512, 512), 2),
    "most channels": (2, 8192, (3, 3), 64),
    "most samples": (4096, 32, (4, 4), 8),
}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        _ops.cuda_unusable_reason() is not None, reason=_ops.cuda_unusable_reason() or ""
    ),
]


@pytest.fixture(params=STRATEGIES)
def strategy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SEBLOCK_STRATEGY", request.param)
    name: str = request.param
    return name


def planned(
    strategy: str, make: Callable[..., cases.Problem], *arguments: Any, device: str = "cuda"
) -> cases.Problem:
    """The problem; skips, visibly and before there is data, what the strategy cannot run."""
    outline = make(*arguments, device=device, outline=True)
    try:
        plans = explain(outline.x, *outline.parameters, **outline.tail)
    except ValueError as reason:
        pytest.skip(str(reason))
    assert plans.strategy == strategy
    return make(*arguments, device=device)


@pytest.mark.parametrize("tail", [None, *cases.TAILS])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(
    strategy: str, shape: str, layout: str, dtype: torch.dtype, tail: str | None
) -> None:
    make = partial(cases.make_problem, bias=True, tail=tail)
    problem = planned(strategy, make, SHAPES[shape], dtype, layout)
    cases.check_no_worse_than_plain(run(problem), problem)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("workload", cases.workloads(), ids=lambda row: row.name)
def test_workloads(strategy: str, workload: cases.Workload, layout: str) -> None:
    make = partial(cases.workload_problem, samples=9, weight_dtype=torch.float32, tail="add_relu")
    problem = planned(strategy, make, workload, torch.bfloat16, layout)
    cases.check_no_worse_than_plain(run(problem), problem)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_every_run_gives_the_same_bits(strategy: str, layout: str) -> None:
    shape = SHAPES["many tasks"]
    problem = planned(strategy, cases.make_problem, shape, torch.bfloat16, layout)
    first = run(problem)
    for _ in range(50):
        for name, value in run(problem).items():
            assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", ["groups", "many tasks", "odd planes", "many samples"])
def test_every_strategy_gives_the_same_bits(
    shape: str, layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = cases.make_problem(SHAPES[shape], dtype, layout, tail="add_relu", device="cuda")
    monkeypatch.setenv("SEBLOCK_STRATEGY", "split")
    expected = run(problem)
    for strategy in STRATEGIES[1:]:
        monkeypatch.setenv("SEBLOCK_STRATEGY", strategy)
        try:
            explain(problem.x, *problem.parameters, **problem.tail)
        except ValueError:
            continue
        for name, value in run(problem).items():
            assert torch.equal(value, expected[name]), (strategy, name)


def test_several_streams_at_once(strategy: str) -> None:
    """Each launch has its own counters: blocks of one never wait for those of another."""
    shape = SHAPES["many tasks"]
    problems = [
        planned(strategy, partial(cases.make_problem, seed=seed), shape, torch.bfloat16)
        for seed in range(4)
    ]
    expected = [run(problem) for problem in problems]
    streams = [torch.cuda.Stream() for _ in problems]
    torch.cuda.synchronize()
    results: list[dict[str, Tensor]] = []
    for _ in range(20):
        results = []
        for problem, stream in zip(problems, streams):
            with torch.cuda.stream(stream):
                results.append(run(problem))
    torch.cuda.synchronize()
    for result, wanted in zip(results, expected):
        for name, value in result.items():
            assert torch.equal(value, wanted[name]), name


def test_cuda_graph(strategy: str) -> None:
    """Captured once, replayed on new data, forward and backward."""
    problem = planned(strategy, cases.make_problem, SHAPES["many tasks"], torch.bfloat16)
    leaves = [problem.x.requires_grad_(), *(p for p in problem.parameters if p is not None)]
    for leaf in leaves:
        leaf.requires_grad_()

    def train() -> tuple[Tensor, ...]:
        y = squeeze_excitation(problem.x, *problem.parameters)
        return (y, *torch.autograd.grad(y, leaves, problem.dy))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            train()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = train()
    for seed in range(3):
        other = cases.make_problem(SHAPES["many tasks"], torch.bfloat16, seed=seed, device="cuda")
        with torch.no_grad():
            problem.x.copy_(other.x)
        graph.replay()
        for one, two in zip(captured, train()):
            assert torch.equal(one, two)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_more_than_2_to_the_31_elements(strategy: str, layout: str) -> None:
    """The last samples of 2.2e9 elements are what they are on their own."""
    if torch.cuda.get_device_properties("cuda").total_memory < 40e9:
        pytest.skip("needs 40 GB")
    n, c, side, r = 2700, 256, 56, 16
    x = torch.empty(n, side, side, c, dtype=torch.bfloat16, device="cuda").normal_()
    x = x.movedim(3, 1) if layout == "nhwc" else x.view(n, c, side, side)
    weights = torch.randn(r, c, device="cuda") / 16, torch.randn(c, r, device="cuda") / 4
    try:
        explain(x, *weights)
    except ValueError as reason:
        pytest.skip(str(reason))
    x.requires_grad_()
    y = squeeze_excitation(x, *weights)
    (dx,) = torch.autograd.grad(y, x, x.detach())
    last = x[-3:].detach().clone().requires_grad_()
    y_last = squeeze_excitation(last, *weights)
    (dx_last,) = torch.autograd.grad(y_last, last, last.detach())
    assert torch.equal(y[-3:], y_last) and torch.equal(dx[-3:], dx_last)


def test_the_log_has_the_plans_that_explain_tells(
    strategy: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """So explain knows of this device what the run does: the blocks of stream are as compiled."""
    problem = planned(strategy, cases.make_problem, SHAPES["many tasks"], torch.bfloat16)
    plans = explain(problem.x, *problem.parameters)
    capfd.readouterr()
    monkeypatch.setenv("SEBLOCK_LOG_PLAN", "1")
    run(problem)
    logged = [line for line in capfd.readouterr().err.splitlines() if "seblock_cuda: " in line]
    assert logged == [f"seblock_cuda: {line}" for line in repr(plans).splitlines()]


def test_an_unknown_strategy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEBLOCK_STRATEGY", "fastest")
    x = torch.randn(2, 8, 4, 4, device="cuda")
    weight = torch.randn(2, 8, device="cuda")
    with pytest.raises(Exception, match="strategy must be split, stream or resident"):
        squeeze_excitation(x, weight, weight.t().contiguous())
