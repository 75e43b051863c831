"""Writes the README's figures from the newest results folders, between its two marks.

    python -m benchmarks.readme            # writes
    python -m benchmarks.readme --check    # only says whether the README is in step

One folder of a GPU and one of a CPU; what is not in them is "not measured".
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.model_table import table as model_table
from benchmarks.record import RESULTS, ROOT, ModelRow, OpRow, newest, read_csv
from benchmarks.tables import Comparison, compare, figure, geometric_mean

README = ROOT / "README.md"
BEGIN, END = "<!-- results: written by `make readme` -->", "<!-- end of results -->"

# The rows of the table that the README shows; the means are over all.
SHOWN = ("seresnet50/1", "seresnet50/4", "mobilenetv3_large/15", "efficientnet_b0/2")
DIRECTIONS = {"forward": "forward", "both": "forward + backward"}
RIVALS = {"plain": "plain", "compile": "compile", "compile_graph": "compile, both in graphs"}
NOT_MEASURED = "not measured"
TAIL_HEADING = "With the end of a residual block in the same op, `relu(x * gate + shortcut)`:"


def render(readme: str, results: Path, root: Path) -> str:
    """The README with its figures up to date.

    Raises:
        ValueError: the README does not have both marks.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README needs the lines {BEGIN!r} and {END!r}")
    blocks = [device_section(newest(results, on_cpu), on_cpu, root) for on_cpu in (False, True)]
    return f"{before}{BEGIN}\n\n" + "\n\n".join(blocks) + f"\n\n{END}{after}"


def device_section(folder: Path | None, on_cpu: bool, root: Path) -> str:
    """What one folder has to say."""
    where = "On a CPU" if on_cpu else "On a GPU"
    if folder is None:
        return f"**{where}**: {NOT_MEASURED}."
    layers = _of(folder / "op.csv")
    items = [item for item in layers if item.row.residual == 0]
    tails = _preferred([item for item in layers if item.row.residual == 1])
    link = f"[{folder.relative_to(root)}]({folder.relative_to(root)})"
    if not items:
        blocks = [f"**{where}**: the layer is {NOT_MEASURED}; see {link}."]
    else:
        items = _preferred(items)
        blocks = [_heading(where, folder, items, link), op_table(items)]
        system = _preferred(_of(folder / "system" / "op.csv"))
        blocks += [_system_sentence(system)] if system else []
        blocks += [TAIL_HEADING, op_table(tails)] if tails else []
        kind = f"{items[0].row.dtype}_both_{items[0].row.cache}"
        blocks += _picture(folder, f"op_{kind}", "percent of the copy's speed", root)
        blocks += _picture(folder, f"scaling_{kind}_nchw", "time over the size of x", root)
    steps = read_csv(folder / "model.csv", ModelRow)
    if steps:
        blocks += ["Whole training steps:", model_table(steps, "github")]
        blocks += _picture(folder, "model", "SE's share of the training step", root)
    else:
        blocks.append(f"Whole training steps: {NOT_MEASURED}.")
    if not on_cpu:
        blocks.append(_check_sentence(folder))
    return "\n\n".join(blocks)


def _of(path: Path) -> list[Comparison]:
    found = compare(read_csv(path, OpRow))
    return [item for item in found if "fused" in item.times and item.row.direction in DIRECTIONS]


def _preferred(items: Sequence[Comparison]) -> list[Comparison]:
    """Those of one dtype and cache state: bfloat16 and cold, if there are any."""
    dtypes = {item.row.dtype for item in items}
    caches = {item.row.cache for item in items}
    dtype = "bfloat16" if "bfloat16" in dtypes else "float32"
    cache = "cold" if "cold" in caches else "hot"
    return [item for item in items if (item.row.dtype, item.row.cache) == (dtype, cache)]


def _heading(where: str, folder: Path, items: Sequence[Comparison], link: str) -> str:
    row, runs = items[0].row, _environment(folder)
    run = runs[-1] if runs else {}
    commits = dict.fromkeys(run["commit"][:7] for run in runs if run.get("commit"))
    threads = run.get("method", {}).get("threads")
    largest = max(item.x_bytes for item in items) / 1e6
    facts = [str(run.get("device", "unknown device"))]
    facts += [f"{threads} threads"] if threads else []
    facts += [row.dtype, f"x up to {largest:.0f} MB", f"{row.cache} cache", "medians"]
    facts += [f"commit {', '.join(commits)}"] if commits else []
    compiled = any("compile" in item.times for item in items)
    left_out = "" if compiled else f" torch.compile: {NOT_MEASURED}."
    return (
        f"**{where}** ({'; '.join(facts)}), how many times as fast, and the time in copies of x "
        f"(the limit is 1 forward and 2.5 with backward).{left_out} Everything recorded: {link}."
    )


def op_table(items: Sequence[Comparison]) -> str:
    """The chosen rows, and the geometric mean and the worst over all rows."""
    rivals = [name for name in RIVALS if any(name in item.times for item in items)]
    headers = ["layer", "layout"]
    for direction in DIRECTIONS.values():
        headers += [f"{direction}: over {RIVALS[name]}" for name in rivals] + ["copies"]
    cases: dict[tuple[str, str], dict[str, Comparison]] = {}
    for item in items:
        case = cases.setdefault((item.name, str(item.row.layout)), {})
        case[str(item.row.direction)] = item
    lines = []
    for (name, layout), found in cases.items():
        if name in SHOWN:
            row = next(iter(found.values())).row
            line = [f"{name}, {row.n} x {row.c} x {row.h} x {row.w}", layout]
            for direction in DIRECTIONS:
                item = found.get(direction)
                line += [_times([item.speed_up(name) if item else None]) for name in rivals]
                line.append(_times([item.copies() if item else None], ""))
            lines.append(line)
    line = [f"all {len({item.name for item in items})} layers: geometric mean (worst)", ""]
    for direction in DIRECTIONS:
        found_items = [item for item in items if item.row.direction == direction]
        for rival in rivals:
            line.append(_times([i.speed_up(rival) for i in found_items if rival in i.times]))
        line.append(_times([i.copies() for i in found_items if "copy" in i.times], "", max))
    alignment = ("left", "left", *["right"] * (len(headers) - 2))
    return tabulate(
        [*lines, line], headers, tablefmt="github", disable_numparse=True, colalign=alignment
    )


def _times(values: Iterable[float | None], unit: str = "x", worst: Any = min) -> str:
    """A ratio; of several the geometric mean, and the worst in brackets."""
    measured = [value for value in values if value is not None and value == value]
    if not measured:
        return NOT_MEASURED
    mean = figure(geometric_mean(measured), "{:.1f}") + unit
    return mean if len(measured) == 1 else f"{mean} ({worst(measured):.1f}{unit})"


def _system_sentence(items: Sequence[Comparison]) -> str:
    told = []
    for direction, name in DIRECTIONS.items():
        of_direction = [item for item in items if item.row.direction == direction]
        told.append(f"{name} {_times([item.speed_up('plain') for item in of_direction])}")
    return (
        "That is with a malloc that keeps freed memory, which everybody who trains on a CPU should "
        "have ([docs/benchmarks.md](docs/benchmarks.md#memory-on-a-cpu)). With malloc as it "
        f"is, page faults slow everything down; over plain: {', '.join(told)}."
    )


def _picture(folder: Path, name: str, about: str, root: Path) -> list[str]:
    path = folder / f"{name}.png"
    return [f"![{about}]({path.relative_to(root)})"] if path.exists() else []


def _check_sentence(folder: Path) -> str:
    path = folder / "gpu_check.json"
    if not path.exists():
        return f"`make gpu-check`: {NOT_MEASURED}."
    outcomes = json.loads(path.read_text())
    told = [f"{part} {outcome['verdict']}" for part, outcome in outcomes.items()]
    return f"`make gpu-check`: {', '.join(told)}."


def _environment(folder: Path) -> list[dict[str, Any]]:
    path = folder / "environment.json"
    return json.loads(path.read_text()) if path.exists() else []


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 if `--check` finds the README out of step."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(argv)
    old = README.read_text()
    new = render(old, RESULTS, ROOT)
    new = re.sub(r"\n{3,}", "\n\n", new)
    if not options.check:
        README.write_text(new)
    elif new != old:
        print("README.md is not in step with benchmarks/results: make readme")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
