"""What SE costs in whole training steps, from the rows of model.csv."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from benchmarks.record import ModelRow
from benchmarks.tables import figure


@dataclass(frozen=True)
class Step:
    """The training step of one network, per kind of SE."""

    network: str
    batch: int
    dtype: str
    layout: str
    mode: str
    rows: dict[str, ModelRow]

    def ms(self, se: str) -> float:
        return self.rows[se].median_ms if se in self.rows else math.nan

    def cost_ms(self, se: str) -> float:
        """What SE adds to the step."""
        return self.ms(se) - self.ms("none")

    def share(self, se: str) -> float:
        """SE's share of the step."""
        return self.cost_ms(se) / self.ms(se)

    @property
    def cost_ratio(self) -> float:
        """The headline: what fused SE costs over what plain SE costs; NaN if that is within noise.

        Noise: the step without SE, from its p20 to its p80; and a fused cost below 0.
        """
        bare = self.rows.get("none")
        if bare is None or not self.cost_ms("plain") > bare.p80_ms - bare.p20_ms:
            return math.nan
        if self.cost_ms("fused") < 0:
            return math.nan
        return self.cost_ms("fused") / self.cost_ms("plain")

    def peak_mb(self, se: str) -> float:
        """What a step takes beyond weights and the optimiser's state."""
        peak = self.rows[se].peak_bytes if se in self.rows else None
        return math.nan if peak is None else peak / 1e6


def steps(rows: Iterable[ModelRow]) -> list[Step]:
    """The rows by network, layout and mode, in their order."""
    groups: dict[tuple[str, int, str, str, str], dict[str, ModelRow]] = {}
    for row in rows:
        case = (row.network, row.batch, row.dtype, row.layout, row.mode)
        groups.setdefault(case, {})[row.se] = row
    return [Step(*case, found) for case, found in groups.items()]


def table(rows: Sequence[ModelRow], style: str = "simple") -> str:
    """One line per network, layout and mode."""
    headers = ["network", "batch", "dtype", "layout", "mode"]
    headers += ["plain ms", "fused ms", "no SE ms", "SE's share, plain", "SE's share, fused"]
    headers += ["cost of SE, fused / plain", "peak MB, plain", "fused", "no SE"]
    lines = []
    for step in steps(rows):
        line = [step.network, str(step.batch), step.dtype, step.layout, step.mode]
        line += [figure(step.ms(se), "{:.2f}") for se in ("plain", "fused", "none")]
        line += [figure(step.share(se), "{:.1%}") for se in ("plain", "fused")]
        line += [figure(step.cost_ratio, "{:.2f}")]
        line += [figure(step.peak_mb(se), "{:.0f}") for se in ("plain", "fused", "none")]
        lines.append(line)
    alignment = ("left", "right", *["left"] * 3, *["right"] * 9) if lines else None
    return tabulate(lines, headers, tablefmt=style, disable_numparse=True, colalign=alignment)
