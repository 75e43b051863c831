"""Rows side by side: the tables on the terminal and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from benchmarks.record import OpRow

LARGE_BYTES = 8e6  # x from this size on is bound by memory, below by calls
OURS = ("fused", "fused_graph")
RIVALS = ("plain", "compile", "compile_graph")
NONE = "-"  # not measured, or none


@dataclass(frozen=True)
class Comparison:
    """What each provider took for one case; with the copy, if there is one."""

    row: OpRow  # any of them
    times: dict[str, OpRow]  # by provider

    @property
    def name(self) -> str:
        return f"{self.row.network}/{self.row.stage}"

    @property
    def x_bytes(self) -> int:
        row = self.row
        itemsize = {"float64": 8, "float32": 4}.get(row.dtype, 2)
        return row.n * row.c * row.h * row.w * itemsize

    def ms(self, provider: str) -> float:
        """Not a number if it was not measured."""
        return self.times[provider].median_ms if provider in self.times else math.nan

    def speed_up(self, rival: str) -> float:
        """Over a rival in a graph: of this layer in a graph."""
        return self.ms(rival) / self.ms("fused_graph" if rival == "compile_graph" else "fused")

    def copies(self, provider: str = "fused") -> float:
        return self.ms(provider) / self.ms("copy")

    def of_copy_speed(self, provider: str = "fused") -> float:
        """The speed at which the least traffic is done, over the speed of the copy."""
        if provider not in self.times or "copy" not in self.times:
            return math.nan
        copy_bytes = self.times["copy"].bytes
        return (self.times[provider].bytes / copy_bytes) / self.copies(provider)

    def gigabytes_per_second(self, provider: str = "fused") -> float:
        return self.times[provider].bytes / self.ms(provider) / 1e6


def compare(rows: Iterable[OpRow]) -> list[Comparison]:
    """The rows by case, in their order; every case gets the copy of its shape, dtype and cache."""
    cases: dict[tuple[object, ...], dict[str, OpRow]] = {}
    copies: dict[tuple[object, ...], OpRow] = {}
    for row in rows:
        shape = (row.network, row.stage, row.n, row.c, row.h, row.w, row.dtype, row.cache)
        if row.provider == "copy":
            copies[shape] = row
        else:
            case = (shape, row.layout, row.direction, row.residual)
            cases.setdefault(case, {})[row.provider] = row
    for (shape, *_), times in cases.items():
        if shape in copies:
            times["copy"] = copies[shape]  # type: ignore[index]
    return [Comparison(next(iter(times.values())), times) for times in cases.values()]


def table(comparisons: Sequence[Comparison], style: str = "simple") -> str:
    """One line per case; "passes" are those over x that the fused time would buy as a copy."""
    present = [
        name
        for name in (*OURS, *RIVALS, "copy")
        if any(name in comparison.times for comparison in comparisons)
    ]
    rivals = [name for name in present if name in RIVALS]
    costs = any("fused" in item.times and item.times["fused"].host_us for item in comparisons)
    headers = ["layer", "x", "MB", "dtype", "layout", "direction", "residual", "cache"]
    headers += [f"{name} ms" for name in present] + ["fused GB/s", "of copy", "passes"]
    headers += [f"over {name}" for name in rivals]
    headers += ["host us", "launches", "peak MB"] if costs else []
    lines = [_line(comparison, present, rivals, costs) for comparison in comparisons]
    alignment = ("left", "left", "right", *["left"] * 5, *["right"] * (len(headers) - 8))
    return tabulate(
        lines,
        headers,
        tablefmt=style,
        disable_numparse=True,
        colalign=alignment if lines else None,
    )


def _line(
    item: Comparison, present: Sequence[str], rivals: Sequence[str], costs: bool
) -> list[str]:
    row, fused = item.row, item.times.get("fused")
    shape = "x".join(map(str, (row.n, row.c, row.h, row.w)))
    line = [item.name, shape, f"{item.x_bytes / 1e6:.1f}", row.dtype, str(row.layout)]
    line += [str(row.direction), "yes" if row.residual else "no", row.cache]
    line += [figure(item.ms(name)) for name in present]
    line += [figure(item.gigabytes_per_second()) if fused else NONE]
    line += [figure(item.of_copy_speed(), "{:.0%}"), figure(2 * item.copies())]
    line += [figure(item.speed_up(name)) for name in rivals]
    if costs:
        line += [figure(fused.host_us if fused else None, "{:.1f}")]
        line += [figure(fused.launches if fused else None, "{:.0f}")]
        peak = fused.peak_bytes if fused else None
        line += [figure(None if peak is None else peak / 1e6, "{:.1f}")]
    return line


def figure(value: float | None, style: str = "{:#.3g}") -> str:
    """A number for a table, or the sign for none."""
    return NONE if value is None or math.isnan(value) else style.format(value)


def summary(comparisons: Sequence[Comparison], style: str = "simple") -> str:
    """Geometric means and worst cases per dtype, direction, layout, cache and size of x."""
    sizes = {"all": 0.0, f">= {LARGE_BYTES / 1e6:.0f} MB": LARGE_BYTES}
    groups: dict[tuple[str, ...], list[Comparison]] = {}
    rivals = [name for name in RIVALS if any(name in item.times for item in comparisons)]
    for item in comparisons:
        for size, least in sizes.items():
            if item.x_bytes >= least and "fused" in item.times:
                row = item.row
                residual = "yes" if row.residual else "no"
                key = (row.dtype, str(row.direction), str(row.layout), residual, row.cache, size)
                groups.setdefault(key, []).append(item)
    lines = []
    for key, items in sorted(groups.items()):
        line = [*key, str(len(items))]
        for rival in rivals:
            speed_ups = [item.speed_up(rival) for item in items]
            speed_ups = [value for value in speed_ups if not math.isnan(value)]
            line += [figure(geometric_mean(speed_ups)), figure(min(speed_ups, default=None))]
        copies = [item.copies() for item in items if "copy" in item.times]
        line += [figure(geometric_mean(copies)), figure(max(copies, default=None))]
        lines.append(line)
    headers = ["dtype", "direction", "layout", "residual", "cache", "x", "rows"]
    headers += [f"{what} {name}" for name in rivals for what in ("over", "least over")]
    headers += ["copies", "most copies"]
    alignment = (*["left"] * 6, *["right"] * (len(headers) - 6)) if lines else None
    return tabulate(lines, headers, tablefmt=style, disable_numparse=True, colalign=alignment)


def geometric_mean(values: Sequence[float]) -> float:
    """Not a number if there are none."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan
