"""Predicts the share of copy speed of every strategy on every workload.

    python -m benchmarks.predict            # writes docs/maintainers/prediction.md
    python -m benchmarks.predict --row 0    # prints the lines of one row of workloads.csv

A prediction of benchmarks/dataflow.py, which no GPU has confirmed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

from tqdm import tqdm

from benchmarks.dataflow import ROOT, Simulation
from benchmarks.machine import CLOCK, LAUNCH, Costs
from benchmarks.workloads import Workload, load
from seblock_cuda import _core

PAGE = Path("docs/maintainers/prediction.md")
COPY = {"H100": 3.0e12, "H200": 4.3e12}  # bytes a second, read and written
STRATEGIES = ["split", "stream", "resident"]
LAYOUTS, DIRECTIONS = ["nchw", "nhwc"], ["forward", "backward"]
BAR, LARGE = 0.9, 64 * 2**20


@dataclass(frozen=True)
class Case:
    workload: Workload
    layout: str
    gpu: str
    direction: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        w = self.workload
        return w.batch, w.channels, w.height * w.width, w.reduced

    @property
    def x(self) -> int:
        return 2 * self.workload.batch * self.workload.elements_per_sample

    @property
    def weights(self) -> int:
        return 4 * self.workload.channels * self.workload.reduced

    def plan(self, strategy: str = "", lag: int = 0) -> _core.Plan:
        limits = _core.known_device(self.gpu)
        return _core.plan(  # without a tail
            *self.shape, "bfloat16", self.layout, "bfloat16", True, "none", self.direction, limits,
            strategy, lag=lag,
        )  # fmt: skip

    @property
    def chosen(self) -> str:
        return self.plan().strategy


@cache
def share(case: Case, strategy: str, lag: float = 1.0, **changes: float) -> float | None:
    """Of copy speed, launches included; None where the strategy is refused.

    `lag` times the plan's own; `changes` to the model's costs.
    """
    try:
        plan = case.plan(strategy)
        if lag != 1:
            plan = case.plan(strategy, max(1, min(case.shape[0], round(plan.lag * lag))))
    except ValueError:
        return None
    hbm = COPY[case.gpu] / CLOCK
    cycles = Simulation(case.shape, case.layout, case.direction, plan, Costs(hbm, **changes)).run()
    least = (2 if case.direction == "forward" else 3) * case.x / hbm
    return (least + LAUNCH) / (cycles + LAUNCH)


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}".removeprefix("0")


def line(workload: Workload, layout: str) -> str:
    """Of the table."""
    cells = []
    for gpu, direction in product(COPY, DIRECTIONS):
        case = Case(workload, layout, gpu, direction)
        shown = [figure(share(case, strategy)) for strategy in STRATEGIES]
        at = STRATEGIES.index(case.chosen)
        shown[at] = f"**{shown[at]}**"
        cells.append(" ".join(shown))
    sizes = [f"{case.x / 1e6:.1f}", f"{case.weights / 1e3:.0f}"]
    return f"| {' | '.join([workload.name, layout, *sizes, *cells])} |"


HEAD = """\
# Prediction

**Nothing here was measured.** `python -m benchmarks.predict` writes this page from a discrete-event
model of the kernels' dataflow (`benchmarks/dataflow.py`), which no GPU has confirmed. It is there
to be refuted by a measurement.

It rests on

- what the compiler made of the kernels (sm_90): instructions a vector and registers, from
  [compiled.md](compiled.md); instructions around the vectors and in the products, and loads that
  wait for each other, counted in the same machine code and named in the script;
- the plan's own strategy, group, lag and blocks; the tasks of `tiling.h`, in the order of
  `tickets.h`;
- numbers of the machine that are assumed: copies at 3.0 TB/s (H100) and 4.3 TB/s (H200), 5.5 TB/s
  of L2 for reads and writes together, 30 of 50 MiB of L2 usable; latencies of 600 (memory) and 270
  cycles (L2), 700 for a fence, 843 for an atomic, 500 for a flag to be seen; 1.755 GHz, 3.6
  instructions a cycle and multiprocessor, 1.8 cycles from one instruction of a warp to its next;
  1.5 us for a launch or a memset, 1.0 us between launches, 0.5 us where they overlap.

Left out: sectors that are read and not used, bank conflicts, pages, what another call left in the
L2 (all is cold).

## All rows

bfloat16, no tail, the batch of `benchmarks/workloads.csv`. Share of the speed of a copy, launches
included, of **split stream resident**; bold: what the rule chooses; -: refused.
"""
COLUMNS = ["row", "layout", "x MB", "W KB"]


def table(workloads: list[Workload]) -> list[str]:
    heads = COLUMNS + [f"{gpu} {direction}" for gpu, direction in product(COPY, DIRECTIONS)]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    todo = list(product(workloads, LAYOUTS))
    return lines + [line(*case) for case in tqdm(todo, unit="line", disable=None)]


def reached(cases: list[Case], bar: float) -> str:
    shares = sorted(share(case, case.chosen) or 0.0 for case in cases)
    enough = sum(round(value, 2) >= bar for value in shares)
    span = f"{figure(shares[0])} to {figure(shares[-1])}, median {figure(shares[len(shares) // 2])}"
    return f"{enough} of {len(shares)} cases ({span})"


def bars(cases: list[Case]) -> list[str]:
    """A case is a row, a layout, a GPU and a direction."""
    lines = ["", "## The bars", ""]
    for direction in DIRECTIONS:
        found = [c for c in cases if c.gpu == "H100" and c.x > LARGE and c.direction == direction]
        lines.append(
            f"- **{BAR} of copy over 64 MB, H100, {direction}**: {reached(found, BAR)} reach it."
        )
    for gpu in COPY:
        found = [
            c for c in cases
            if (c.gpu, c.direction, c.chosen) == (gpu, "forward", "resident")
        ]  # fmt: skip
        lines.append(f"- **Resident {BAR} forward, {gpu}**: {reached(found, BAR)} reach it.")
    for strategy in STRATEGIES[1:]:
        found = [c for c in cases if c.chosen == strategy]
        lost = [(share(c, "split") or 0) - (share(c, strategy) or 0) for c in found]
        below = sum(round(loss, 2) > 0 for loss in lost)
        lines.append(
            f"- **Nowhere below split**: {strategy} is in {below} of the {len(found)} cases where "
            f"it is chosen, by up to {figure(max(lost))}."
        )
    return lines


TERMS: dict[str, dict[str, float]] = {
    "as compiled": {},
    "products in half the time": {"products": 0.5},
    "in a quarter": {"products": 0.25},
    "in a tenth": {"products": 0.1},
    "in none": {"products": 0},
    "in none, no fences or atomics": {"products": 0, "fence": 0},
    "in none, half the instructions": {"products": 0, "instructions": 0.5},
    "in none, no gradients": {"products": 0, "gradients": 0},
    "1.3 cycles from an instruction to the next": {"cycles": 1.3},
    "lag 1.5 times": {"lag": 1.5},
    "lag 2 times": {"lag": 2},
    "a quarter, lag 1.5 times": {"products": 0.25, "lag": 1.5},
}


def costs(cases: list[Case]) -> list[str]:
    """The chosen strategy's share with one term of the model changed."""
    groups = {
        f"{strategy}, {direction}": [
            c for c in cases
            if (c.gpu, c.direction, c.chosen) == ("H100", direction, strategy)
            and (strategy == "resident" or c.x > LARGE)
        ]
        for strategy, direction in product(STRATEGIES[1:], DIRECTIONS)
    }  # fmt: skip
    lines = ["", "## Which term costs it", ""]
    lines += ["H100, the cases where a strategy is chosen (stream: over 64 MB): lowest, median and"]
    lines += ["highest share, and in how many it is at least split's.", ""]
    lines += [f"| changed | {' | '.join(groups)} |", f"|---|{'---|' * len(groups)}"]
    for name, changes in tqdm(TERMS.items(), unit="term", disable=None):
        cells = []
        for group in groups.values():
            if "lag" in changes and group[0].chosen != "stream":
                cells.append("")
                continue
            found = [(share(c, c.chosen, **changes) or 0, share(c, "split") or 0) for c in group]
            values = sorted(value for value, _ in found)
            spread = " ".join(figure(values[i]) for i in (0, len(values) // 2, -1))
            good = sum(round(value - split, 2) >= 0 for value, split in found)
            cells.append(f"{spread}, {good} of {len(found)}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def products_us(case: Case) -> float:
    """Of one sample, by one block that has its multiprocessor to itself."""
    costs = Costs(COPY[case.gpu] / CLOCK)
    simulation = Simulation(case.shape, case.layout, case.direction, case.plan("stream"), costs)
    simulation.machine.run([simulation.products_of_sample(0)])
    return simulation.machine.now / CLOCK * 1e6


def lags(workloads: list[Workload]) -> list[str]:
    lines = ["", "## The lag and the products", ""]
    lines += ["H100, rows over 64 MB that stream: how long the plan's lag lasts at copy speed, and"]
    lines += ["how long the two products of a sample take the block that runs them. us", ""]
    heads = [f"{what} {direction}" for direction in DIRECTIONS for what in ("lag", "products")]
    lines += [f"| row | layout | {' | '.join(heads)} |", f"|---|---|{'---:|' * len(heads)}"]
    for workload, layout in product(workloads, LAYOUTS):
        cells = [workload.name, layout]
        for direction in DIRECTIONS:
            case = Case(workload, layout, "H100", direction)
            units = 2 if direction == "forward" else 3
            sample = units * case.x / case.shape[0] / COPY["H100"] * 1e6
            cells += [f"{case.plan('stream').lag * sample:.1f}", f"{products_us(case):.1f}"]
        if case.chosen == "stream" and case.x > LARGE:
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predict", description=__doc__)
    parser.add_argument("--row", type=int, help="of workloads.csv, from 0: prints it only")
    row = parser.parse_args().row
    if row is not None:
        print("\n".join(table([load()[row]])))
        return
    workloads = load()
    cases = [Case(*case) for case in product(workloads, LAYOUTS, COPY, DIRECTIONS)]
    lines = [HEAD, *table(workloads), *bars(cases), *costs(cases), *lags(workloads)]
    page = ROOT / PAGE
    notes = page.read_text().partition(NOTES)[2] if page.exists() else ""
    page.write_text("\n".join([*lines, "", NOTES]) + (notes or "\n"))
    print(f"wrote {PAGE}")


NOTES = "## What follows"  # by hand, kept

if __name__ == "__main__":
    main()
