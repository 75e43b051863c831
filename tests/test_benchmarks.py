"""The benchmarks: the table is read whole, wrong results are caught, the CSV has its columns."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("tabulate")

from benchmarks import op, providers, timing, workloads
from benchmarks.problems import DTYPES, LAYOUTS, Problem
from benchmarks.record import OpRow, read_csv
from benchmarks.tables import compare, summary, table
from benchmarks.validate import Bar

COLUMNS = (
    "network,stage,n,c,h,w,r,dtype,layout,direction,residual,cache,provider,strategy,"
    "median_ms,p20_ms,p80_ms,bytes,host_us,peak_bytes,launches"
)
TINY = workloads.Workload("tiny", 1, 8, 5, 7, 4, "relu", "sigmoid", True, 3)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _keep_threads() -> Iterator[None]:
    """The benchmark sets torch's thread count for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_every_workload_is_read() -> None:
    lines = workloads.TABLE.read_text().splitlines()
    rows = workloads.load()
    assert len(rows) == len(lines) - 1 == 25
    for row in rows:
        assert row.activation in providers.reference.ACTIVATIONS
        assert row.gate in providers.reference.GATES
        assert min(row.channels, row.height, row.width, row.reduced, row.batch) > 0


def test_bad_workload_table_names_the_line(tmp_path: Path) -> None:
    lines = workloads.TABLE.read_text().splitlines()
    table = tmp_path / "bad.csv"
    table.write_text("\n".join([*lines[:2], lines[2].replace("512", "many")]))
    with pytest.raises(ValueError, match=r"bad\.csv, line 3: .*many"):
        workloads.load(table)


@pytest.mark.parametrize(
    ("max_mb", "batch"), [(None, 128), (1e6, 128), (32, 9), (1e-6, 1)], ids=str
)
def test_batch_is_scaled_to_fit(max_mb: float | None, batch: int) -> None:
    first = workloads.load()[0]  # 256 x 56 x 56: 3.2 MB a sample in float32
    assert first.fitting_batch(torch.float32, max_mb) == batch


def quick(folder: Path, *options: str) -> int:
    fixed = "--max-mb 0.2 --seconds 0.001 --device cpu --threads 1 --results"
    return op.main(["--quick", *fixed.split(), str(folder), *options])


def test_quick_run_leaves_rows_repetitions_environment_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "made" / "cpu"
    assert quick(folder, "--rows", "7", "23") == 0

    assert (folder / "op.csv").read_text().splitlines()[0] == COLUMNS
    rows = read_csv(folder / "op.csv", OpRow)
    # per workload one copy, and two providers in two layouts and three directions
    assert len(rows) == 2 * (1 + 2 * 2 * 3)
    for row in rows:
        assert row.dtype == "float32" and row.cache == "hot" and row.residual == 0
        assert 0 < row.p20_ms <= row.median_ms <= row.p80_ms
        passes = {None: 2, "forward": 2, "backward": 3, "both": 5}[row.direction]
        assert row.bytes == passes * 4 * row.n * row.c * row.h * row.w
        assert (row.provider == "copy") == (row.layout is None) == (row.direction is None)
    with gzip.open(folder / "op.jsonl.gz", "rt") as file:
        raw = [json.loads(line) for line in file]
    assert len(raw) == len(rows)
    for line in raw:
        assert min(line["samples_ms"]) <= line["row"]["median_ms"] <= max(line["samples_ms"])
        assert line["method"]["threads"] == 1
    (environment,) = json.loads((folder / "environment.json").read_text())
    assert environment["collect_env"]["torch_version"] == torch.__version__
    shown = capsys.readouterr().out
    for text in ("irse50_face/4", "board_8x8/1", "of copy", "over plain"):
        assert text in shown and text in (folder / "op.md").read_text()


def test_a_second_run_measures_only_what_is_missing(tmp_path: Path) -> None:
    first = ("--rows", "7", "--direction", "forward", "--layout", "nchw")
    assert quick(tmp_path, *first) == 0
    before = (tmp_path / "op.jsonl.gz").read_bytes()
    assert quick(tmp_path, *first) == 0
    assert (tmp_path / "op.jsonl.gz").read_bytes() == before
    assert quick(tmp_path, "--rows", "7", "--direction", "forward") == 0
    assert len(read_csv(tmp_path / "op.csv", OpRow)) == 1 + 2 * 2
    # another method: measured again, in the place of the old row
    assert quick(tmp_path, *first, "--seconds", "0.002") == 0
    assert (tmp_path / "op.jsonl.gz").read_bytes() != before
    assert len(read_csv(tmp_path / "op.csv", OpRow)) == 1 + 2 * 2


def test_a_budget_stops_between_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quick(tmp_path, "--rows", "7", "23", "--budget", "0") == op.INCOMPLETE
    assert "4 of 4 cases are left" in capsys.readouterr().out


def test_residual_is_timed_where_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--rows", "7", "--residual", "1", "--layout", "nhwc", "--direction", "both")

    def not_yet(problem: Problem) -> Tensor:
        raise NotImplementedError("not here")

    monkeypatch.setitem(providers.PROVIDERS, "fused", not_yet)
    assert quick(tmp_path / "without", *options) == 0
    assert "not measured" in capsys.readouterr().out
    kinds = [row.provider for row in read_csv(tmp_path / "without" / "op.csv", OpRow)]
    assert kinds == ["plain", "copy"]

    monkeypatch.setitem(providers.PROVIDERS, "fused", providers.plain)
    assert quick(tmp_path / "with", *options) == 0
    rows = {row.provider: row for row in read_csv(tmp_path / "with" / "op.csv", OpRow)}
    elements = 512 * 7 * 7
    assert rows["fused"].bytes == rows["plain"].bytes == 7 * 4 * elements + 2 * (elements // 8)
    assert rows["fused"].residual == 1 and rows["copy"].residual == 0


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_the_residual_problem_has_no_element_at_the_kink(dtype: torch.dtype) -> None:
    problem = Problem.make(TINY, 3, dtype, "nhwc", CPU, with_residual=True)
    assert problem.residual is not None and problem.residual.stride() == problem.x.stride()
    total = problem.branch(torch.float64) + problem.residual.double()
    assert total.abs().min() > 0.1
    assert Bar.of(problem).faults(providers.plain) == []


def test_torch_compile_is_a_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without inductor, which takes half a minute."""
    quickly = torch.compile(providers.plain_layer, dynamic=False, backend="aot_eager")
    monkeypatch.setitem(providers.PROVIDERS, "compile", providers.of_layer(quickly))
    options = ("--rows", "7", "23", "--layout", "nchw", "--direction", "both")
    names = ("compile", "compile_graph", "fused_graph")
    assert quick(tmp_path, *options, "--providers", *names) == 0
    rows = read_csv(tmp_path / "op.csv", OpRow)
    assert [row.provider for row in rows] == ["compile", "compile"]  # no CUDA graphs on a CPU


def test_one_case_that_fails_does_not_take_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make = Problem.make

    def fail_once(workload: workloads.Workload, *rest: Any, **named: Any) -> Problem:
        if workload.network == "irse50_face":
            raise RuntimeError("out of memory")
        return make(workload, *rest, **named)

    monkeypatch.setattr(Problem, "make", fail_once)
    assert quick(tmp_path, "--rows", "7", "23", "--direction", "forward") == op.WRONG
    assert "FAILED: irse50_face/4 float32 nchw" in capsys.readouterr().out
    networks = {row.network for row in read_csv(tmp_path / "op.csv", OpRow)}
    assert networks == {"board_8x8"}


def test_cuda_calls_take_turns_and_rotate(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock in the place of the GPU: every call advances it by its own time."""
    now, order = [0.0], []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = 0.0

        def record(self) -> None:
            self.at = now[0]

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    def call(name: str, ms: float) -> Callable[[], object]:
        def run() -> None:
            now[0] += ms
            order.append(name)

        return run

    for name, fake in {"Event": Event, "synchronize": lambda: None}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    calls = {"a": [call("a0", 1.0), call("a1", 3.0)], "b": [call("b0", 2.0)]}
    times = timing.time_cuda(calls, seconds=0.0, with_costs=False)
    assert times["a"].samples_ms == [1.0, 3.0] * timing.ROUNDS and times["b"].median_ms == 2.0
    assert times["a"].median_ms == 2.0 and times["a"].launches is None
    assert order[-6:] == ["a0", "a1", "b0"] * 2


def test_launches_are_those_of_one_call_and_no_annotations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the CPU's operators in the place of a GPU's kernels."""
    calls = []

    def call() -> None:
        calls.append(None)
        with torch.profiler.record_function("## Call CompiledFxGraph ##"):
            torch.ones(()).add_(1) if len(calls) == 1 else torch.ones(()).mul_(1)

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    names = {name for name, _ in timing.device_activities(call, torch.autograd.DeviceType.CPU)}
    assert "aten::mul_" in names and "aten::add_" not in names
    assert all(name.startswith("aten::") for name in names), names


def test_ratios_of_a_comparison() -> None:
    def row(provider: str, ms: float, passes: int) -> OpRow:
        is_copy = provider == "copy"
        layout, direction = (None, None) if is_copy else ("nchw", "backward")
        shape = ("net", 1, 2, 3, 5, 7, 1, "bfloat16", layout, direction)
        return OpRow(*shape, 0, "cold", provider, None, ms, ms, ms, passes * 2 * 210)

    rows = [row("plain", 12.0, 3), row("copy", 2.0, 2), row("fused", 4.0, 3)]
    (item,) = compare(rows)
    assert item.speed_up("plain") == 3 and item.copies() == 2
    assert item.of_copy_speed() == pytest.approx(3 / 4)  # 3 passes at twice the copy's time
    # in a graph against in a graph; not a number where one of them was not measured
    assert math.isnan(item.speed_up("compile_graph"))
    rows += [row("fused_graph", 2.0, 3), row("compile_graph", 5.0, 3)]
    (item,) = compare(rows)
    assert item.speed_up("compile_graph") == 2.5 and item.of_copy_speed("fused_graph") == 1.5
    assert "fused_graph ms" in table([item]) and "over compile_graph" in summary([item])
    assert item.x_bytes == 420 and item.gigabytes_per_second() == pytest.approx(3 * 420 / 4e6)


def test_unknown_network_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert op.main(["--network", "resnet", "--device", "cpu"]) == 2
    assert "known: seresnet50, irse50_face" in capsys.readouterr().err


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_right_results_have_no_faults(dtype: torch.dtype, layout: str) -> None:
    problem = Problem.make(TINY, 3, dtype, layout, CPU)
    for name in ("fused", "plain"):
        assert Bar.of(problem).faults(providers.PROVIDERS[name]) == [], name


def off_by_one_part_in_a_thousand(problem: Problem) -> Tensor:
    return providers.fused(problem) * 1.001


def one_element_wrong(problem: Problem) -> Tensor:
    y = providers.fused(problem)
    return y + torch.zeros_like(y).index_fill(3, torch.tensor([3]), 1e-4)


def no_gradient_through_the_gate(problem: Problem) -> Tensor:
    with torch.no_grad():
        gate = providers.fused(problem) / problem.x
    parameters = [tensor.sum() for name, tensor in problem.inputs.items() if name != "x"]
    return problem.x * gate + 0 * sum(parameters)


def not_a_number(problem: Problem) -> Tensor:
    return providers.fused(problem) * torch.nan


def test_a_rival_is_judged_without_tf32_and_timed_as_users_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def rounds_where_tf32_may_be(problem: Problem) -> Tensor:
        seen.append(torch.backends.cudnn.allow_tf32)
        return providers.plain(problem) * (1.001 if seen[-1] else 1)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setitem(providers.PROVIDERS, "compile", rounds_where_tf32_may_be)
    options = ("--rows", "23", "--layout", "nchw", "--direction", "both", "--providers", "compile")
    assert quick(tmp_path, *options) == 0
    assert [row.provider for row in read_csv(tmp_path / "op.csv", OpRow)] == ["compile"]
    assert not seen[0] and seen[-1]


def other_layout(problem: Problem) -> Tensor:
    return providers.fused(problem).contiguous(memory_format=torch.channels_last)


def no_bias(problem: Problem) -> Tensor:
    assert problem.reduce_bias is not None
    zero = torch.zeros_like(problem.reduce_bias)
    return providers.fused(dataclasses.replace(problem, reduce_bias=zero + 0 * problem.reduce_bias))


@pytest.mark.parametrize(
    ("mutant", "told"),
    [
        (off_by_one_part_in_a_thousand, "y is off by"),
        (one_element_wrong, "y is off by"),
        (no_gradient_through_the_gate, "dx is off by"),
        (not_a_number, "y is off by nan"),
        (other_layout, "y has strides"),
        (no_bias, "y is off by"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_wrong_provider_is_reported_and_not_timed(
    mutant: Callable[[Problem], Tensor],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(providers.PROVIDERS, "fused", mutant)
    assert quick(tmp_path, "--rows", "23", "--layout", "nchw") == op.WRONG
    shown = capsys.readouterr()
    assert told in shown.out + shown.err and "WRONG" in shown.out
    assert {row.provider for row in read_csv(tmp_path / "op.csv", OpRow)} == {"plain", "copy"}
