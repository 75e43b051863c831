"""The traffic table: what the CUDA kernels do to memory, counted on the SIMT harness.

    python -m tests.simt.audit [--samples 2] [--network seresnet50] [--strategy stream] [--residual]

One line per strategy, workload, layout and direction, in bfloat16 with float32 weights, planned for
a device of two multiprocessors. The columns:

    x reads     passes over |x|, the bytes of x, in tensors of that size: for the first time + again
                in a later launch + again in the same launch (strategy stream: from L2; and vectors
                on the border of two planes)
    writes      passes over |x|: y or dx, and what a residual adds
    distance    the largest between two touches of a byte of those tensors, in |x|: what a cache
                would have to hold for the second read to hit it
    sectors     efficiency: least 32-byte sectors / sectors touched, of those tensors
    shared      dynamic shared memory of a block, the most of any launch, in bytes
    conflicts   bank conflicts in shared memory per request, the most of any launch
    weights     read, in |W1| + |W2|
    plan        "=" where the plan states the very bytes of x, weights, small tensors, their further
                reads in strategy split, and writes
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.workloads import Workload
from benchmarks.workloads import load as workloads
from seblock_cuda import _core
from tests import cases
from tests.simt import build, kernels

DIRECTIONS = ["forward", "backward"]
BIG = ["x", "dy", "residual", "mask", "y", "dx", "dresidual"]
SMALL = ["pooled", "z1", "gate", "workspace"]
PRODUCTS = ["reduce", "expand", "reduce gradient", "expand gradient"]  # launches of strategy split


@dataclass
class Summary:
    """The bytes of one direction, summed over its launches."""

    launches: int
    x_first: int  # reads of x and dy
    x_again: int
    x_repeated: int
    x_written: int
    distance: int
    efficiency: float  # of the sectors of tensors the size of x
    weights: int  # reads of W1 and W2
    small: int  # reads of small tensors, once per launch
    shared: int  # read once more by other tiles of the same product, in strategy split
    written: int  # everything but the gradients of biases
    shared_bytes: int
    conflicts: dict[str, float]  # in shared memory, per request: by kernel


def summarize(launches: list[kernels.Launch]) -> Summary:
    def total(field: str, names: Sequence[str], kernels: Sequence[str] = ()) -> int:
        return sum(
            launch.tensors[name][field]
            for launch in launches
            if not kernels or launch.kernel in kernels
            for name in names
        )

    # What a launch reads of dresidual it may have written itself: then it has had it before.
    for launch in launches:
        kept = launch.tensors.get("dresidual")
        if kept and kept["written"]:
            kept["read_repeatedly"] += kept.pop("first_read")
            kept["first_read"] = 0
    present = set(launches[0].tensors) if launches else set()
    big, small = ([name for name in names if name in present] for names in (BIG, SMALL))
    weights = [name for name in ("W1", "W2") if name in present]
    sectors = total("sectors", big)
    return Summary(
        launches=len(launches),
        x_first=total("first_read", big),
        x_again=total("read_again", big),
        x_repeated=total("read_repeatedly", big),
        x_written=total("written", big),
        distance=max(
            (launch.tensors[name]["largest_distance"] for launch in launches for name in big),
            default=0,
        ),
        efficiency=total("least_sectors", big) / sectors if sectors else 1.0,
        weights=sum(
            total(field, weights) for field in ("first_read", "read_again", "read_repeatedly")
        ),
        small=total("first_read", small) + total("read_again", small),
        shared=total("read_repeatedly", small, PRODUCTS),
        written=total("written", [name for name in present if name not in ("db1", "db2")]),
        shared_bytes=max((launch.shared_bytes for launch in launches), default=0),
        conflicts={
            launch.kernel: launch.bank_conflicts / max(1, launch.shared_requests)
            for launch in launches
        },
    )


def measure(
    module: ModuleType,
    problem: cases.Problem,
    strategy: str = "split",
    forced: kernels.Forced = kernels.AS_PLANNED,
) -> dict[str, Summary]:
    """Runs forward and backward with every access recorded."""
    run = kernels.run(module, problem, strategy=strategy, forced=forced, record=True)
    return {
        "forward": summarize(run.forward_launches),
        "backward": summarize(run.backward_launches),
    }


def plans_of(
    problem: cases.Problem, strategy: str = "split", forced: kernels.Forced = kernels.AS_PLANNED
) -> dict[str, _core.Plan]:
    """By direction, the plan by which the harness runs it; ValueError if `strategy` cannot."""
    x, weight, residual = problem.x, problem.reduce_weight, problem.residual
    n, c = x.shape[:2]
    layout = cases.LAYOUTS[kernels.layout_of(x)]
    aligned = all(t.data_ptr() % 16 == 0 for t in (x, problem.dy, residual) if t is not None)
    names = [str(tensor.dtype).removeprefix("torch.") for tensor in (x, weight)]
    tails = {None: "add", "relu": "add_relu"}
    stream = strategy == "stream"
    return {
        direction: _core.plan(
            n,
            c,
            x.shape[2:].numel(),
            weight.shape[0],
            names[0],
            layout,
            names[1],
            aligned,
            tail="none" if residual is None else tails[problem.residual_activation],
            direction=direction,
            limits=kernels.LIMITS,
            strategy=strategy,
            group=forced.group,
            lag=forced.lag if stream else 0,
            blocks=forced.blocks if stream else 0,
        )
        for direction in DIRECTIONS
    }


def differences(summary: Summary, stated: _core.Traffic) -> dict[str, tuple[int, int]]:
    """Where the harness and the plan disagree: name -> (counted, stated)."""
    counted = {
        "x": summary.x_first + summary.x_again,
        "weights": summary.weights,
        "small": summary.small,
        "shared": summary.shared,
        "written": summary.written,
        "launches": summary.launches,
    }
    pairs = {name: (count, getattr(stated, name)) for name, count in counted.items()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def problem_of(
    workload: Workload, layout: str, samples: int = 1, tail: str | None = None
) -> cases.Problem:
    """The workload on whole planes, the batch cut to `samples`."""
    return cases.workload_problem(
        workload, torch.bfloat16, layout, samples=samples, weight_dtype=torch.float32, tail=tail
    )


@dataclass
class Row:
    """One line of the table, and what the last line sums up."""

    text: str
    as_planned: bool
    beyond: float  # reads of x in the launch that has had it, that the plan does not state; in |x|
    efficiency: float
    conflicts: float


def rows_of(job: tuple[Workload, str, str, int, str | None]) -> list[Row]:
    """The lines of the table for one workload in one layout; none if the strategy cannot run it."""
    workload, layout, strategy, samples, tail = job
    torch.set_num_threads(1)
    module = kernels.load(build.build_kernels())
    problem = problem_of(workload, layout, samples, tail)
    try:
        plans = plans_of(problem, strategy)
    except ValueError:
        return []
    rows = []
    for direction, summary in measure(module, problem, strategy).items():
        stated = plans[direction].traffic
        differs = differences(summary, stated)
        text = (
            f"{strategy:9} {direction:9} {layout:7} {workload.name:21} "
            f"{_columns(summary, problem.x, problem.reduce_weight)}  {differs or '='}"
        )
        beyond = (summary.x_repeated - stated.again) / problem.x.nbytes
        rows.append(Row(text, not differs, beyond, summary.efficiency, worst(summary)))
    return rows


def worst(summary: Summary) -> float:
    """Bank conflicts per request of the launch that has the most of them."""
    return max(summary.conflicts.values(), default=0.0)


def _columns(summary: Summary, x: Tensor, weight: Tensor) -> str:
    reads = [part / x.nbytes for part in (summary.x_first, summary.x_again, summary.x_repeated)]
    return (
        f"{reads[0]:.3f} + {reads[1]:.3f} + {reads[2]:.3f}  {summary.x_written / x.nbytes:.3f}"
        f"  {summary.distance / x.nbytes:8.2f}  {summary.efficiency:7.4f}"
        f"  {summary.shared_bytes:6}"
        f"  {worst(summary):9.2f}"
        f"  {summary.weights / (2 * weight.nbytes):7.2f}  {summary.launches:8}"
    )


HEADER = (
    "strategy  direction layout  workload              x reads                writes  distance"
    "  sectors  shared  conflicts  weights  launches  plan"
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the traffic table.")
    parser.add_argument("--samples", type=int, default=1, help="the batch (default 1)")
    parser.add_argument("--network", help="only this network of the workload table")
    parser.add_argument("--strategy", choices=kernels.STRATEGIES, help="only this one")
    parser.add_argument("--residual", action="store_true", help="relu(x * gate + residual)")
    arguments = parser.parse_args()
    start = time.monotonic()
    build.build_kernels()
    tail = "add_relu" if arguments.residual else None
    jobs = [
        (workload, layout, strategy, arguments.samples, tail)
        for strategy in kernels.STRATEGIES
        for workload in workloads()
        for layout in cases.LAYOUTS
        if arguments.network in (None, workload.network) and arguments.strategy in (None, strategy)
    ]
    print(f"bfloat16, float32 weights, batch {arguments.samples}, whole planes\n{HEADER}")
    rows: list[Row] = []
    with ProcessPoolExecutor() as pool:
        for part in pool.map(rows_of, jobs):
            for row in part:
                print(row.text, flush=True)
            rows += part
    planned = sum(row.as_planned for row in rows)
    print(
        f"{planned} of {len(rows)} lines as the plan states; read again beyond that: at most "
        f"{max(row.beyond for row in rows):.3f} |x|; sector efficiency: at least "
        f"{min(row.efficiency for row in rows):.3f}; bank conflicts: at most "
        f"{max(row.conflicts for row in rows):.2f} per request; {time.monotonic() - start:.0f} s"
    )
    sys.exit(planned != len(rows))


if __name__ == "__main__":
    main()
