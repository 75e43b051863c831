"""Times the layer on the workload table: fused, plain PyTorch, and the copy of x as the limit.

    python -m benchmarks.bench_op --network seresnet50 --direction both

Every row is checked against float64 before it is timed. Writes one line per measurement to a CSV,
and the environment beside it as JSON. Directions: forward (inference), backward alone, both (what a
training step pays).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import providers, report, timing
from benchmarks.providers import Problem
from benchmarks.report import Comparison, Row
from benchmarks.workloads import Workload, load, select
from seblock_cuda._ops import cuda_unusable_reason, explain

CPU_MAX_MB = 64.0
QUICK_MAX_MB = 2.0


@dataclass(frozen=True)
class Setting:
    """What to measure on every workload, and how."""

    device: torch.device
    threads: int
    seconds: float
    max_mb: float | None
    layouts: Sequence[str]
    directions: Sequence[str]

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"


def measure(
    workload: Workload, dtype_name: str, setting: Setting
) -> Iterator[tuple[Comparison, list[Row]]]:
    """Per layout and direction the comparison and its CSV rows; no rows if the result is wrong.

    The copy is timed once, in turns with the first comparison: it depends on neither layout nor
    direction.
    """
    dtype = providers.DTYPES[dtype_name]
    batch = workload.fitting_batch(dtype, setting.max_mb)
    copy: timing.Timing | None = None
    for layout in setting.layouts:
        problem = Problem.make(workload, batch, dtype, layout, setting.device)
        shape, x_bytes = tuple(problem.x.shape), problem.x.numel() * problem.x.itemsize
        wrong = _report_faults(problem, f"{workload.name} {dtype_name} {layout}")
        problems = [problem]
        if setting.on_cuda and not wrong:
            for seed in range(1, timing.cold_sets(x_bytes)):
                problems.append(Problem.make(workload, batch, dtype, layout, setting.device, seed))
        for direction in setting.directions:
            start = Comparison(workload.name, shape, x_bytes, dtype_name, layout, direction)
            if wrong:
                yield replace(start, wrong=True), []
                continue
            times = _time(problems, direction, setting, with_copy=copy is None)
            rows = [
                _row(setting, problem, layout, direction, name, timed)
                for name, timed in times.items()
            ]
            copy = times.get("copy", copy)
            assert copy is not None
            comparison = replace(
                start,
                plain_ms=times["plain"].median_ms,
                fused_ms=times["fused"].median_ms,
                copy_ms=copy.median_ms,
            )
            yield comparison, rows


def _report_faults(problem: Problem, label: str) -> bool:
    faults = providers.faults(providers.PROVIDERS["fused"], problem)
    for fault in faults:
        tqdm.write(f"WRONG: {label}: {fault}")
    return bool(faults)


def _time(
    problems: Sequence[Problem], direction: str, setting: Setting, with_copy: bool
) -> dict[str, timing.Timing]:
    calls = {
        name: [providers.direction_call(provider, problem, direction) for problem in problems]
        for name, provider in providers.PROVIDERS.items()
    }
    if with_copy:
        calls["copy"] = [providers.copy_call(problem) for problem in problems]
    if setting.on_cuda:
        return timing.time_cuda(calls, seconds=setting.seconds)
    only = {name: rotation[0] for name, rotation in calls.items()}
    return timing.time_cpu(only, threads=setting.threads, seconds=setting.seconds)


def _row(
    setting: Setting,
    problem: Problem,
    layout: str,
    direction: str,
    provider: str,
    timed: timing.Timing,
) -> Row:
    is_copy = provider == "copy"
    planned = setting.on_cuda and provider == "fused"
    n, c, h, w = problem.x.shape
    return Row(
        network=problem.workload.network,
        stage=problem.workload.stage,
        n=n,
        c=c,
        h=h,
        w=w,
        r=problem.workload.reduced,
        dtype=str(problem.x.dtype).removeprefix("torch."),
        layout=None if is_copy else layout,
        direction=None if is_copy else direction,
        residual=0,
        cache="cold" if setting.on_cuda else "hot",
        provider=provider,
        strategy=explain(problem.x, problem.reduce_weight).strategy if planned else None,
        median_ms=timed.median_ms,
        p20_ms=timed.p20_ms,
        p80_ms=timed.p80_ms,
        bytes=providers.limit_bytes(problem.x, "copy" if is_copy else direction),
        host_us=timed.host_us,
        peak_bytes=timed.peak_bytes,
    )


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_op", description="Times the layer on the workload table."
    )
    add = parser.add_argument
    add("--network", nargs="+", help="only these networks of the table")
    add("--rows", nargs="+", type=int, help="only these rows of the table, from 0")
    add("--dtype", nargs="+", choices=providers.DTYPES, default=["float32"])
    add("--layout", choices=[*providers.LAYOUTS, "both"], default="both", help="of x in memory")
    add(
        "--direction",
        nargs="+",
        choices=providers.DIRECTIONS,
        default=list(providers.DIRECTIONS),
        help="forward (inference), backward alone, both together; default: each",
    )
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--threads", type=int, default=torch.get_num_threads(), help="on the CPU")
    add(
        "--allocator",
        choices=["keep", "system"],
        default="system",
        help="on the CPU: keep freed memory, so that no call has page faults; or malloc as it is",
    )
    add("--seconds", type=float, help="time for each measurement; default 0.3")
    add("--max-mb", type=float, help=f"scale the batch so that x fits; default {CPU_MAX_MB} on CPU")
    add("--quick", action="store_true", help="small batches, short measurements")
    add("--output", type=Path, default=Path("out/op.csv"), help="the CSV to write")
    return parser.parse_args(argv)


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where the kernels can run.

    Raises:
        ValueError: CUDA was asked for and cannot be used; the message says why.
    """
    reason = cuda_unusable_reason()
    if name == "cuda" and reason:
        raise ValueError(f"--device cuda: {reason}")
    return torch.device("cpu" if name == "cpu" or reason else "cuda")


def settings(options: argparse.Namespace) -> Setting:
    device = choose_device(options.device)
    max_mb = options.max_mb
    if max_mb is None and options.quick:
        max_mb = QUICK_MAX_MB
    elif max_mb is None and device.type == "cpu":
        max_mb = CPU_MAX_MB
    seconds = options.seconds or (0.02 if options.quick else 0.3)
    layouts = list(providers.LAYOUTS) if options.layout == "both" else [options.layout]
    return Setting(device, options.threads, seconds, max_mb, layouts, options.direction)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 if a result was wrong, 2 if the options cannot be served."""
    options = parse_arguments(argv)
    try:
        setting = settings(options)
        workloads = select(load(), options.network, options.rows)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(setting.threads)
    kept = options.allocator == "keep" and timing.keep_freed_memory()

    comparisons: list[Comparison] = []
    rows: list[Row] = []
    cases = [(workload, dtype) for dtype in options.dtype for workload in workloads]
    with tqdm(cases, unit="case", disable=None) as progress:
        for workload, dtype in progress:
            progress.set_postfix_str(f"{workload.name} {dtype}")
            for comparison, measured in measure(workload, dtype, setting):
                comparisons.append(comparison)
                rows += measured

    report.write_csv(options.output, rows)
    environment = options.output.with_suffix(".json")
    report.write_environment(
        environment,
        setting.device,
        threads=setting.threads,
        allocator="keep" if kept else "system",
        seconds_per_measurement=setting.seconds,
    )
    where = "CUDA" if setting.on_cuda else f"CPU, threads: {setting.threads}"
    print(f"\n{report.table(comparisons)}\n\n{report.summary(comparisons)}\n")
    print(f"measured on {where}; copies: fused time over the time to copy x once")
    print(f"wrote {options.output} and {environment}")
    return 1 if any(comparison.wrong for comparison in comparisons) else 0


if __name__ == "__main__":
    sys.exit(main())
