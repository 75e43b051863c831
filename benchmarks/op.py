"""Times the layer on the workload table: fused, plain PyTorch, torch.compile, and the copy of x.

    python -m benchmarks.op --network seresnet50 --direction both

Every row is checked against float64 before it is timed. Directions: forward (inference), backward
alone, both (what a training step pays). Leaves `op.csv`, every repetition, the environment and the
tables in one folder; started again with the same folder, it measures only what is missing there.

On a CPU torch.compile takes tens of seconds per row, so it is measured only when asked for:
`--providers fused plain compile copy`.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from benchmarks import providers, timing
from benchmarks.options import Setting, parser, settings
from benchmarks.problems import DTYPES, Problem
from benchmarks.providers import GRAPHS, PROVIDERS
from benchmarks.record import OpRow, Record, malloc, timed, write_environment
from benchmarks.tables import OURS, compare, summary, table
from benchmarks.validate import Bar
from benchmarks.workloads import Workload, load, select
from seblock_cuda import explain

RIVALS_SLACK = 4.0  # rivals only have to compute the same thing; our bar is plain PyTorch's error
WRONG, UNSERVED, INCOMPLETE = 1, 2, 3  # exit codes


@dataclass(frozen=True)
class Case:
    """What is built, checked and compiled once."""

    workload: Workload
    dtype: str
    layout: str
    residual: int

    def __str__(self) -> str:
        tail = " residual" if self.residual else ""
        return f"{self.workload.name} {self.dtype} {self.layout}{tail}"

    def problem(self, setting: Setting, seed: int = 0) -> Problem:
        return Problem.make(
            self.workload,
            self.workload.fitting_batch(DTYPES[self.dtype], setting.max_mb),
            DTYPES[self.dtype],
            self.layout,
            setting.device,
            seed,
            with_residual=bool(self.residual),
        )

    def rows(self, setting: Setting) -> Iterator[OpRow]:
        """What is to be measured of this case, results still empty."""
        workload = self.workload
        row = OpRow(
            workload.network,
            workload.stage,
            workload.fitting_batch(DTYPES[self.dtype], setting.max_mb),
            workload.channels,
            workload.height,
            workload.width,
            workload.reduced,
            self.dtype,
            self.layout,
            direction=None,
            residual=self.residual,
            cache="",
            provider="copy",
            strategy=None,
        )
        for cache in setting.caches:
            for direction in setting.directions:
                for name in setting.providers:
                    if name != "copy":
                        yield replace(row, direction=direction, cache=cache, provider=name)
            if "copy" in setting.providers:
                yield replace(row, layout=None, residual=0, cache=cache)


def cases_of(options: argparse.Namespace, workloads: Sequence[Workload]) -> list[Case]:
    """In the order of measuring: with a budget, the first ones are what there will be."""
    return [
        Case(workload, dtype, layout, residual)
        for residual in options.residual
        for dtype in options.dtype
        for workload in workloads
        for layout in options.layout
    ]


def measure(case: Case, setting: Setting, record: Record) -> bool:
    """Adds what the record lacks of a case; False if a result was wrong and is left out."""
    missing = [row for row in case.rows(setting) if not record.has(row)]
    if not missing:
        return True
    torch.compiler.reset()  # or the compiler gives up after a few shapes
    problems = [case.problem(setting)]
    usable, right = _usable_providers(case, problems[0], [row.provider for row in missing])
    missing = [row for row in missing if row.provider in usable]
    if setting.on_cuda and "cold" in setting.caches:
        x_bytes = problems[0].x.numel() * problems[0].x.itemsize
        problems += [case.problem(setting, seed) for seed in range(1, timing.cold_sets(x_bytes))]
    for cache in setting.caches:
        copies = [row for row in missing if row.cache == cache and row.provider == "copy"]
        for direction in setting.directions:
            rows = [row for row in missing if (row.cache, row.direction) == (cache, direction)]
            if rows or copies:
                record.add(_time([*rows, *copies], direction, problems, cache, setting))
            copies = []
    return right


def _usable_providers(case: Case, problem: Problem, names: Sequence[str]) -> tuple[set[str], bool]:
    """The providers that can be timed, and whether none of the others was wrong."""
    usable, right = {"copy", "plain"}, True
    bar = Bar.of(problem) if set(names) - usable else None
    for name in dict.fromkeys(names):
        if bar is None or name in usable:
            continue
        try:
            faults = bar.faults(PROVIDERS[name], 1.0 if name in OURS else RIVALS_SLACK)
        except NotImplementedError as error:
            tqdm.write(f"not measured: {case}, {name}: {error}")
            continue
        except RuntimeError as error:  # a rival that does not compile, say
            faults = [str(error)]
        for fault in faults:
            tqdm.write(f"WRONG: {case}, {name}: {fault}")
        if faults:
            right = False
        else:
            usable.add(name)
    return usable, right


def _time(
    rows: Sequence[OpRow],
    direction: str,
    problems: Sequence[Problem],
    cache: str,
    setting: Setting,
) -> list[tuple[OpRow, timing.Timing]]:
    rotation = problems if cache == "cold" else problems[:1]
    calls = {
        row.provider: [
            providers.copy_call(problem)
            if row.provider == "copy"
            else providers.timed_call(row.provider, problem, direction)
            for problem in rotation
        ]
        for row in rows
    }
    if setting.on_cuda:
        with_costs = cache == setting.caches[0]
        times = timing.time_cuda(calls, seconds=setting.seconds, with_costs=with_costs)
    else:
        only = {name: sets[0] for name, sets in calls.items()}
        times = timing.time_cpu(only, threads=setting.threads, seconds=setting.seconds)
    return [
        (_filled(row, problems[0], times[row.provider], setting), times[row.provider])
        for row in rows
    ]


def _filled(row: OpRow, problem: Problem, measured: timing.Timing, setting: Setting) -> OpRow:
    planned = setting.on_cuda and row.provider in OURS
    filled = replace(
        row,
        **timed(measured),
        strategy=_strategy(problem, row.direction) if planned else None,
        bytes=providers.limit_bytes(problem, row.direction or "copy"),
        host_us=measured.host_us,
        launches=measured.launches,
    )
    # a graph holds its memory between replays: the peak of one says nothing
    return replace(filled, peak_bytes=None) if row.provider in GRAPHS else filled


def _strategy(problem: Problem, direction: str | None) -> str:
    """Of the direction; both, where they differ, with a slash between them."""
    plans = explain(
        problem.x, problem.reduce_weight, residual=problem.residual, residual_activation="relu"
    )
    one, other = plans.forward.strategy, plans.backward.strategy
    if direction == "both":
        return plans.strategy or f"{one}/{other}"
    return one if direction == "forward" else other


def run(
    options: argparse.Namespace, setting: Setting, workloads: Sequence[Workload], name: str
) -> int:
    """Measures the workloads into `<name>.csv` of the results folder; the exit code."""
    started = time.monotonic()
    torch.set_num_threads(setting.threads)
    method: dict[str, object] = {"seconds": setting.seconds}
    if not setting.on_cuda:
        method |= {"threads": setting.threads, "malloc": malloc()}
    record = Record(options.results, name, OpRow, method)
    write_environment(options.results, setting.device, method)
    cases = cases_of(options, workloads)
    right, left = True, 0
    with tqdm(cases, unit="case", disable=None) as progress:
        for case in progress:
            if options.budget is not None and time.monotonic() - started > options.budget:
                left += 1
                continue
            progress.set_postfix_str(str(case))
            try:
                right &= measure(case, setting, record)
            except RuntimeError:  # the other cases are still worth having
                tqdm.write(f"FAILED: {case}\n{traceback.format_exc()}")
                right = False

    comparisons = compare(row for row in record.rows.values() if isinstance(row, OpRow))
    where = "CUDA" if setting.on_cuda else f"CPU, threads: {setting.threads}"
    report = f"{table(comparisons)}\n\n{summary(comparisons)}\n"
    (options.results / f"{name}.md").write_text(
        f"{table(comparisons, 'github')}\n\n{summary(comparisons, 'github')}\n"
    )
    print(f"\n{report}\nmeasured on {where}; wrote {record.csv}")
    if left:
        print(f"{left} of {len(cases)} cases are left: run it again to go on")
    return WRONG if not right else INCOMPLETE if left else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 if a result was wrong or failed, 2 if the options are bad, 3 if cut short."""
    arguments = parser("benchmarks.op", "Times the layer on the workload table.")
    arguments.add_argument("--network", nargs="+", help="only these networks of the table")
    arguments.add_argument("--rows", nargs="+", type=int, help="only these rows, from 0")
    options = arguments.parse_args(argv)
    try:
        setting, workloads = settings(options), select(load(), options.network, options.rows)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNSERVED
    return run(options, setting, workloads, "op")


if __name__ == "__main__":
    sys.exit(main())
