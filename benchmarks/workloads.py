"""The workload table: the Squeeze-and-Excitation layers of real networks, one row per shape."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

TABLE = Path(__file__).with_name("workloads.csv")


@dataclass(frozen=True)
class Workload:
    """One SE layer of a network: x [batch, channels, height, width], `reduced` hidden channels."""

    network: str
    stage: int
    channels: int
    height: int
    width: int
    reduced: int
    activation: str
    gate: str
    bias: bool
    batch: int
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.network}/{self.stage}"

    @property
    def elements_per_sample(self) -> int:
        return self.channels * self.height * self.width

    def fitting_batch(self, dtype: torch.dtype, max_mb: float | None) -> int:
        """The largest batch, up to the table's, whose x fits in `max_mb` megabytes; at least 1."""
        if max_mb is None:
            return self.batch
        sample_bytes = self.elements_per_sample * dtype.itemsize
        return max(1, min(self.batch, int(max_mb * 1e6) // sample_bytes))


def load(table: Path = TABLE) -> list[Workload]:
    """Every row of the table, in its order.

    Raises:
        ValueError: a field is missing or not of its type; the message names the line.
    """
    rows = []
    with table.open(newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                rows.append(_parse(row))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{table.name}, line {line}: {error!r}") from error
    return rows


def _parse(row: dict[str, str]) -> Workload:
    if row["bias"] not in ("0", "1"):
        raise ValueError(f"bias must be 0 or 1, got {row['bias']}")
    return Workload(
        network=row["network"],
        stage=int(row["stage"]),
        channels=int(row["channels"]),
        height=int(row["height"]),
        width=int(row["width"]),
        reduced=int(row["reduced"]),
        activation=row["activation"],
        gate=row["gate"],
        bias=row["bias"] == "1",
        batch=int(row["batch"]),
        note=row["note"] or "",
    )


def select(
    workloads: Sequence[Workload],
    networks: Sequence[str] | None = None,
    rows: Sequence[int] | None = None,
) -> list[Workload]:
    """The workloads of these networks and at these rows (from 0) of the table; None selects all.

    Raises:
        ValueError: an unknown network or row; the message lists what there is.
    """
    known = list(dict.fromkeys(workload.network for workload in workloads))
    for network in networks or ():
        if network not in known:
            raise ValueError(f"unknown network {network!r}; known: {', '.join(known)}")
    for row in rows or ():
        if not 0 <= row < len(workloads):
            raise ValueError(f"row must be 0 to {len(workloads) - 1}, got {row}")
    return [
        workload
        for row, workload in enumerate(workloads)
        if (networks is None or workload.network in networks) and (rows is None or row in rows)
    ]
