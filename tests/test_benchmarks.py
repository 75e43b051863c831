"""The benchmarks: the table is read whole, wrong results are caught, the CSV has its columns."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("tabulate")

from benchmarks import bench_op, providers, workloads
from benchmarks.providers import Problem

COLUMNS = (
    "network,stage,n,c,h,w,r,dtype,layout,direction,residual,cache,provider,strategy,"
    "median_ms,p20_ms,p80_ms,bytes,host_us,peak_bytes,launches"
)
TINY = workloads.Workload("tiny", 1, 8, 5, 7, 4, "relu", "sigmoid", True, 3)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _keep_threads() -> Iterator[None]:
    """bench_op sets torch's thread count for the whole process."""
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


def test_quick_run_writes_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "made" / "op.csv"
    options = "--quick --rows 7 23 --max-mb 0.2 --seconds 0.001 --device cpu --threads 1"
    options += " --allocator system --output"
    assert bench_op.main([*options.split(), str(output)]) == 0

    assert output.read_text().splitlines()[0] == COLUMNS
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    # per workload one copy, and two providers in two layouts and three directions
    assert len(rows) == 2 * (1 + 2 * 2 * 3)
    for row in rows:
        n, c, h, w = (int(row[name]) for name in "nchw")
        assert row["dtype"] == "float32" and row["cache"] == "hot" and row["residual"] == "0"
        assert 0 < float(row["p20_ms"]) <= float(row["median_ms"]) <= float(row["p80_ms"])
        passes = {"": 2, "forward": 2, "backward": 3, "both": 5}[row["direction"]]
        assert int(row["bytes"]) == passes * 4 * n * c * h * w
        assert (row["provider"] == "copy") == (row["layout"] == "") == (row["direction"] == "")
    assert json.loads(output.with_suffix(".json").read_text())["threads"] == 1
    shown = capsys.readouterr().out
    assert "irse50_face/4" in shown and "board_8x8/1" in shown and "mean speed-up" in shown


def test_unknown_network_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_op.main(["--network", "resnet", "--device", "cpu"]) == 2
    assert "known: seresnet50, irse50_face" in capsys.readouterr().err


@pytest.mark.parametrize("layout", providers.LAYOUTS)
@pytest.mark.parametrize("dtype", providers.DTYPES.values(), ids=str)
def test_right_results_have_no_faults(dtype: torch.dtype, layout: str) -> None:
    problem = Problem.make(TINY, 3, dtype, layout, CPU)
    for name, provider in providers.PROVIDERS.items():
        assert providers.faults(provider, problem) == [], name


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
    output = tmp_path / "op.csv"
    options = "--rows 23 --max-mb 0.2 --seconds 0.001 --device cpu --threads 1 --layout nchw"
    options += " --allocator system --output"
    assert bench_op.main([*options.split(), str(output)]) == 1
    shown = capsys.readouterr()
    assert told in shown.out + shown.err and "WRONG" in shown.out
    assert output.read_text().splitlines() == [COLUMNS]
