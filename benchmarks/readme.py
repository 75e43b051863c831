"""Writes the measured figures: docs/results.md, and a few of them into the README.

    python -m benchmarks.readme            # writes
    python -m benchmarks.readme --check    # only says whether both are in step

From the newest results folders, one of a GPU and one of a CPU; what is not in them is "not
measured".
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.model_table import steps
from benchmarks.model_table import table as model_table
from benchmarks.record import RESULTS, ROOT, ModelRow, OpRow, newest, read_csv
from benchmarks.tables import Comparison, compare, figure, geometric_mean

README, PAGE = ROOT / "README.md", ROOT / "docs/results.md"
BEGIN, END = "<!-- results: written by `make readme` -->", "<!-- end of results -->"
INTRODUCTION = """\
# Results

Written by `make readme` from the newest folders of benchmarks/results.
[benchmarks.md](benchmarks.md) says how it is measured, and how to measure on your machine."""

# The rows of the table that are shown; the means are over all.
SHOWN = ("seresnet50/1", "seresnet50/4", "mobilenetv3_large/15", "efficientnet_b0/2")
DIRECTIONS = {"forward": "forward", "both": "forward + backward"}
RIVALS = {"plain": "plain", "compile": "compile", "compile_graph": "compile, both in graphs"}
NOT_MEASURED = "not measured"
TAIL_HEADING = "With the end of a residual block in the same op, `relu(x * gate + shortcut)`:"


def render(readme: str, results: Path) -> str:
    """The README with its figures up to date.

    Raises:
        ValueError: the README does not have both marks.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README needs the lines {BEGIN!r} and {END!r}")
    blocks = [summary(newest(results, on_cpu), on_cpu) for on_cpu in (False, True)]
    return f"{before}{BEGIN}\n\n" + "\n\n".join(blocks) + f"\n\n{END}{after}"


def summary(folder: Path | None, on_cpu: bool) -> str:
    """How many times as fast a layer and whole steps are, in one small table."""
    where = "On a CPU" if on_cpu else "On a GPU"
    if folder is None:
        return f"{where}: {NOT_MEASURED}."
    items, system = (
        _preferred([item for item in _of(folder / path) if item.row.residual == 0])
        for path in ("op.csv", "system/op.csv")
    )
    lines = []
    for direction, name in DIRECTIONS.items():
        found, as_it_is = (
            [item for item in each if item.row.direction == direction] for each in (items, system)
        )
        over = [_times(i.speed_up(rival) for i in found) for rival in ("plain", "compile")]
        layers = len({item.name for item in found})
        what = f"the layer, {name}: mean (worst) of {layers} layers"
        lines.append([what, *over, _times(i.speed_up("plain") for i in as_it_is)])
    for step in steps(read_csv(folder / "model.csv", ModelRow)):
        what = f"a training step of {step.network}, batch {step.batch}"
        what += ", torch.compile" if step.mode == "compile" else ""
        over_plain = _times([step.ms("plain") / step.ms("fused")], digits=2)
        lines.append([what, over_plain, NOT_MEASURED, NOT_MEASURED])
    headers = [f"{where}: {_facts(folder, items)}", "over plain PyTorch", "over torch.compile"]
    if system:
        headers.append("over plain, malloc as it is")
    else:
        lines = [line[:3] for line in lines]
    columns = _columns(1, len(headers) - 1)
    return tabulate(lines, headers, "github", disable_numparse=True, colalign=columns)


def page(results: Path) -> str:
    """docs/results.md."""
    blocks = [device_section(newest(results, on_cpu), on_cpu) for on_cpu in (False, True)]
    return "\n\n".join([INTRODUCTION, *blocks]) + "\n"


def device_section(folder: Path | None, on_cpu: bool) -> str:
    """What one folder has to say."""
    heading = "## On a CPU" if on_cpu else "## On a GPU"
    if folder is None:
        return f"{heading}\n\n{NOT_MEASURED.capitalize()}."
    layers = _of(folder / "op.csv")
    items = [item for item in layers if item.row.residual == 0]
    tails = _preferred([item for item in layers if item.row.residual == 1])
    link = f"[{folder.name}]({_link(folder)})"
    if not items:
        blocks = [heading, f"The layer is {NOT_MEASURED}; see {link}."]
    else:
        items = _preferred(items)
        blocks = [heading, _method(folder, items, link), op_table(items)]
        system = _preferred(_of(folder / "system" / "op.csv"))
        blocks += [_system_sentence(system)] if system else []
        blocks += [TAIL_HEADING, op_table(tails)] if tails else []
        kind = f"{items[0].row.dtype}_both_{items[0].row.cache}"
        blocks += _picture(folder, f"op_{kind}", "percent of the copy's speed")
        blocks += _picture(folder, f"scaling_{kind}_nchw", "time over the size of x")
    whole = read_csv(folder / "model.csv", ModelRow)
    if whole:
        blocks += ["Whole training steps:", model_table(whole, "github")]
        blocks += _picture(folder, "model", "SE's share of the training step")
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


def _facts(folder: Path, items: Sequence[Comparison]) -> str:
    """What was measured on what, in a few words."""
    runs = _environment(folder)
    run = runs[0] if runs else {}
    threads = run.get("method", {}).get("threads")
    facts = [str(run.get("device", "unknown device"))]
    facts += [f"{threads} threads"] if threads else []
    facts += [items[0].row.dtype] if items else []
    return ", ".join(facts)


def _method(folder: Path, items: Sequence[Comparison], link: str) -> str:
    row = items[0].row
    commits = dict.fromkeys(run["commit"][:7] for run in _environment(folder) if run.get("commit"))
    largest = max(item.x_bytes for item in items) / 1e6
    facts = [f"x up to {largest:.0f} MB", f"{row.cache} cache", "medians"]
    facts += [f"commit {', '.join(commits)}"] if commits else []
    compiled = any("compile" in item.times for item in items)
    left_out = "" if compiled else f" torch.compile: {NOT_MEASURED}."
    return (
        f"{_facts(folder, items)}; {'; '.join(facts)}. How many times as fast; and copies: the "
        "time as multiples of the time in which x is copied (the limit is 1 forward and 2.5 with "
        f"backward).{left_out} Everything recorded: {link}."
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
    alignment = _columns(2, len(headers) - 2)
    return tabulate([*lines, line], headers, "github", disable_numparse=True, colalign=alignment)


def _columns(left: int, right: int) -> list[str]:
    return ["left"] * left + ["right"] * right


def _times(
    values: Iterable[float | None], unit: str = "x", worst: Any = min, digits: int = 1
) -> str:
    """A ratio; of several the geometric mean, and the worst in brackets."""
    measured = [value for value in values if value is not None and value == value]
    if not measured:
        return NOT_MEASURED
    mean = figure(geometric_mean(measured), f"{{:.{digits}f}}") + unit
    return mean if len(measured) == 1 else f"{mean} ({worst(measured):.1f}{unit})"


def _system_sentence(items: Sequence[Comparison]) -> str:
    return (
        "That is with a malloc that keeps freed memory, which everybody who trains on a CPU should "
        "have ([why, and how](benchmarks.md#memory-on-a-cpu)). With malloc as it "
        f"is, page faults slow everything down; over plain: {_over_plain(items)}."
    )


def _over_plain(items: Sequence[Comparison]) -> str:
    told = []
    for direction, name in DIRECTIONS.items():
        of_direction = [item for item in items if item.row.direction == direction]
        told.append(f"{name} {_times(item.speed_up('plain') for item in of_direction)}")
    return ", ".join(told)


def _picture(folder: Path, name: str, about: str) -> list[str]:
    path = folder / f"{name}.png"
    return [f"![{about}]({_link(folder)}/{path.name})"] if path.exists() else []


def _link(folder: Path) -> str:
    return f"../benchmarks/results/{folder.name}"  # from docs/results.md


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
    """Returns 1 if `--check` finds a page out of step."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(argv)
    wanted = {README: render(README.read_text(), RESULTS), PAGE: page(RESULTS)}
    stale = [path for path, text in wanted.items() if path.read_text() != text]
    for path in stale:
        if options.check:
            print(f"{path.name} is not in step with benchmarks/results: make readme")
        else:
            path.write_text(wanted[path])
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
