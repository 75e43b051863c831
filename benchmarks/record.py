"""What a benchmark leaves behind: raw repetitions, CSV and the environment, in one folder.

`<name>.jsonl.gz` has a line per measurement: its row, every repetition, the commit and the method.
`<name>.csv` is the newest row of each measurement. `environment.json` has an entry per run.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils import collect_env

from benchmarks.timing import Timing

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class OpRow:
    """One measurement, one line of op.csv; None (not measured, or none) is an empty field."""

    network: str
    stage: int
    n: int
    c: int
    h: int
    w: int
    r: int
    dtype: str
    layout: str | None
    direction: str | None
    residual: int
    cache: str
    provider: str
    strategy: str | None
    median_ms: float = 0.0
    p20_ms: float = 0.0
    p80_ms: float = 0.0
    bytes: int = 0
    host_us: float | None = None
    peak_bytes: int | None = None
    launches: int | None = None


@dataclass(frozen=True)
class ModelRow:
    """One measurement, one line of model.csv."""

    network: str
    batch: int
    dtype: str
    layout: str
    mode: str
    se: str
    median_ms: float = 0.0
    p20_ms: float = 0.0
    p80_ms: float = 0.0
    peak_bytes: int | None = None


Row = OpRow | ModelRow
Key = tuple[object, ...]
OUTCOMES = ("median_ms", "p20_ms", "p80_ms", "bytes", "host_us", "peak_bytes", "launches")
NOT_IN_KEY = (*OUTCOMES, "strategy")


def key(row: Row) -> Key:
    """What a row measured, without what came out."""
    return tuple(value for name, value in asdict(row).items() if name not in NOT_IN_KEY)


class Record:
    """The measurements of one benchmark in one folder; a run continues where another stopped.

    Args:
        folder: made if need be.
        name: op, scaling or model.
        method: how it is measured. What the folder has at another commit or by another method is
            measured again, and the newest row is the one that counts.
    """

    def __init__(self, folder: Path, name: str, row_type: type[Row], method: Mapping[str, object]):
        self.folder, self.name, self.row_type = folder, name, row_type
        self._origin = {"commit": commit(), "method": dict(method)}
        self.rows: dict[Key, Row] = {}
        self._done: set[Key] = set()
        folder.mkdir(parents=True, exist_ok=True)
        for line in self._lines():
            row = row_type(**line["row"])
            self.rows[key(row)] = row
            here = all(line[name] == value for name, value in self._origin.items())
            (self._done.add if here else self._done.discard)(key(row))

    @property
    def raw(self) -> Path:
        return self.folder / f"{self.name}.jsonl.gz"

    @property
    def csv(self) -> Path:
        return self.folder / f"{self.name}.csv"

    def has(self, row: Row) -> bool:
        return key(row) in self._done

    def add(self, measured: Sequence[tuple[Row, Timing]]) -> None:
        """Writes at once: a run that is stopped loses nothing."""
        with gzip.open(self.raw, "at", encoding="utf-8") as file:
            for row, timing in measured:
                samples = [float(f"{sample:.5g}") for sample in timing.samples_ms]
                line = {"row": asdict(row), "samples_ms": samples, **self._origin}
                file.write(json.dumps(line) + "\n")
                self.rows[key(row)] = row
                self._done.add(key(row))
        write_csv(self.csv, list(self.rows.values()), self.row_type)

    def _lines(self) -> Iterator[dict[str, Any]]:
        if self.raw.exists():
            with gzip.open(self.raw, "rt", encoding="utf-8") as file:
                yield from map(json.loads, file)


def timed(timing: Timing) -> dict[str, Any]:
    """The columns that every timing fills."""
    return {
        "median_ms": timing.median_ms,
        "p20_ms": timing.percentile_ms(20),
        "p80_ms": timing.percentile_ms(80),
        "peak_bytes": timing.peak_bytes,
    }


def write_csv(path: Path, rows: Sequence[Row], row_type: type[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(row_type)])
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _field(value) for name, value in asdict(row).items()})


def read_csv(path: Path, row_type: type[Row]) -> list[Any]:
    """The rows of a CSV; none if there is no such file."""
    if not path.exists():
        return []
    kinds = {field.name: str(field.type) for field in fields(row_type)}
    with path.open(newline="") as file:
        return [
            row_type(**{name: _parse(text, kinds[name]) for name, text in line.items()})
            for line in csv.DictReader(file)
        ]


def newest(results: Path, on_cpu: bool) -> Path | None:
    """The folder `<device>-<yyyymmdd>` with the latest date."""
    folders = [
        folder
        for folder in results.glob("*-" + 8 * "[0-9]")
        if folder.name.startswith("cpu-") == on_cpu
    ]
    return max(folders, key=lambda folder: (folder.name[-8:], folder.name), default=None)


def _field(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def _parse(text: str, kind: str) -> object:
    if text == "" and "None" in kind:
        return None
    return {"int": int, "float": float, "str": str}[kind.removesuffix(" | None")](text)


def write_environment(folder: Path, device: torch.device, method: Mapping[str, object]) -> None:
    """Adds to environment.json where and how this run measures."""
    path = folder / "environment.json"
    runs = json.loads(path.read_text()) if path.exists() else []
    on_cuda = device.type == "cuda"
    run = {
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "commit": commit(),
        "device": torch.cuda.get_device_name(device) if on_cuda else processor_name(),
        "method": dict(method),
        "gpu": gpu_state() if on_cuda else None,
        "collect_env": _collected(),
    }
    path.write_text(json.dumps([*runs, run], indent=1) + "\n")


@cache
def _collected() -> dict[str, Any]:
    return dict(collect_env.get_env_info()._asdict())


def gpu_state() -> dict[str, str] | None:
    """Driver, clocks, temperature and power by nvidia-smi; None where it does not answer."""
    names = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu"
    names += ",power.draw,power.limit"
    command = ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    first = run.stdout.splitlines()[0] if run.stdout else ""
    return dict(zip(names.split(","), map(str.strip, first.split(",")))) or None


def malloc() -> dict[str, str]:
    """What the environment sets of malloc."""
    names = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_CONF")
    return {name: os.environ[name] for name in names if name in os.environ}


def processor_name() -> str:
    """The processor's name as Linux gives it, else the architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return os.uname().machine


def commit() -> str | None:
    """The checkout's commit, with "+" if files other than results differ from it.

    Outside a checkout the variable SEBLOCK_COMMIT can name it; else None.
    """
    git = ("git", "-C", str(ROOT))
    status = ("status", "--porcelain", "-uno", ":!benchmarks/results", ":!README.md")
    try:
        run = subprocess.run(
            (*git, "rev-parse", "HEAD"), capture_output=True, text=True, check=True
        )
        changed = subprocess.run((*git, *status), capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("SEBLOCK_COMMIT")
    return run.stdout.strip() + ("+" if changed.stdout else "")
