"""Checkpoints and logs: what a training leaves on the disk, whole at every moment."""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from problem import Problem

# The options that the losses depend on: one training has one value of each, --se may change.
SAME = (
    *("model", "data", "loss", "norm", "size", "embedding", "scale", "margin", "sample_rate"),
    *("epochs", "batch_size", "lr", "se_lr", "weight_decay", "warmup", "ema", "amp", "seed"),
)


def save(path: Path, state: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Writes beside the old checkpoint, then puts it in its place: one of them is always whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with open(new, "wb") as file:
        torch.save({**state, "options": _same(options)}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def load(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What `save` wrote, on the CPU.

    Raises:
        Problem: there is no checkpoint, it cannot be read, or it is of another training.
    """
    if not path.is_file():
        raise Problem(f"--resume: there is no checkpoint {path}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        saved: dict[str, Any] = state["options"]
    except Exception as error:  # of zipfile, pickle, torch, ... for a file that is no checkpoint
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise Problem(f"--resume: {path} is no checkpoint of this program: {reason}") from None
    now = _same(options)
    differing = [
        f"--{name.replace('_', '-')} {saved.get(name)}, now {now[name]}"
        for name in SAME
        if saved.get(name) != now[name]
    ]
    if differing:
        raise Problem(f"--resume: {path} was trained with {'; '.join(differing)}")
    return state


def _same(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in SAME}


class Log:
    """A CSV file whose first column is a step.

    Args:
        keep: the rows up to this step stay, what a killed training wrote after its checkpoint goes.
        write: False keeps rows in memory only.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, keep: int, write: bool) -> None:
        self.path, self.columns = path, columns
        self.rows: list[dict[str, str]] = []
        if keep and path.is_file():
            with path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if None not in row.values()]
            self.rows = [row for row in rows if int(row["step"]) <= keep]
        self.write = write
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([columns, *(row.values() for row in self.rows)])

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        new = [dict(zip(self.columns, map(str, row), strict=True)) for row in rows]
        self.rows += new
        if self.write:
            with self.path.open("a", newline="") as file:
                csv.writer(file).writerows(row.values() for row in new)

    def last(self, name: str) -> float:
        return float(self.rows[-1][name])

    def column(self, name: str) -> list[float]:
        return [float(row[name]) for row in self.rows]
