"""What a benchmark leaves behind: CSV, environment, and the tables on the terminal."""

from __future__ import annotations

import csv
import json
import math
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from tabulate import tabulate

LARGE_BYTES = 8e6  # x from this size on is bound by memory, below by calls


@dataclass(frozen=True)
class Row:
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
    median_ms: float
    p20_ms: float
    p80_ms: float
    bytes: int
    host_us: float | None = None
    peak_bytes: int | None = None
    launches: int | None = None


COLUMNS = tuple(field.name for field in fields(Row))


@dataclass(frozen=True)
class Comparison:
    """The providers side by side on one workload; no times if the fused result was wrong."""

    name: str
    shape: tuple[int, ...]
    x_bytes: int
    dtype: str
    layout: str
    direction: str
    plain_ms: float = math.nan
    fused_ms: float = math.nan
    copy_ms: float = math.nan
    wrong: bool = False

    @property
    def speed_up(self) -> float:
        return self.plain_ms / self.fused_ms

    @property
    def copies(self) -> float:
        return self.fused_ms / self.copy_ms


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _field(value) for name, value in asdict(row).items()})


def write_environment(path: Path, device: torch.device, **method: object) -> None:
    """Where it was measured, and by what `method`, as JSON."""
    on_cuda = device.type == "cuda"
    environment = {
        "device": torch.cuda.get_device_name(device) if on_cuda else "cpu",
        "processor": processor_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_cuda else None,
        "python": platform.python_version(),
        "system": platform.platform(),
        "commit": commit(),
        **method,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(environment, indent=2) + "\n")


def _field(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def table(comparisons: Iterable[Comparison]) -> str:
    """One line per comparison; "copies" is the fused time in copies of x."""
    headers = ["layer", "x", "MB", "dtype", "layout", "direction"]
    headers += ["plain ms", "fused ms", "copy ms", "speed-up", "copies"]
    lines = []
    for item in comparisons:
        shape = "x".join(map(str, item.shape))
        figures = (item.plain_ms, item.fused_ms, item.copy_ms, item.speed_up, item.copies)
        cells = [f"{value:#.3g}" for value in figures]
        if item.wrong:
            cells = ["WRONG"] * len(cells)
        megabytes = f"{item.x_bytes / 1e6:.1f}"
        lines.append((item.name, shape, megabytes, item.dtype, item.layout, item.direction, *cells))
    return tabulate(
        lines,
        headers,
        disable_numparse=True,
        colalign=("left", "left", "right") + ("left",) * 3 + ("right",) * 5,
    )


def summary(comparisons: Sequence[Comparison]) -> str:
    """Worst and geometric mean of both ratios per dtype, direction, layout and size of x."""
    sizes = {"all": 0.0, f">= {LARGE_BYTES / 1e6:.0f} MB": LARGE_BYTES}
    groups: dict[tuple[str, str, str, str], list[Comparison]] = {}
    for item in comparisons:
        if not item.wrong:
            for size, least in sizes.items():
                if item.x_bytes >= least:
                    key = (item.dtype, item.direction, item.layout, size)
                    groups.setdefault(key, []).append(item)
    lines = []
    for key, items in sorted(groups.items()):
        slowest = min(items, key=lambda item: item.speed_up)
        speed_ups = [item.speed_up for item in items]
        copies = [item.copies for item in items]
        figures = (slowest.speed_up, geometric_mean(speed_ups), geometric_mean(copies), max(copies))
        cells = [f"{value:.2f}" for value in figures]
        lines.append((*key, len(items), cells[0], slowest.name, *cells[1:]))
    headers = ["dtype", "direction", "layout", "x", "rows", "worst speed-up", "at"]
    headers += ["mean speed-up", "mean copies", "worst copies"]
    alignment = ("left",) * 4 + ("right", "right", "left") + ("right",) * 3
    return tabulate(lines, headers, disable_numparse=True, colalign=alignment if lines else None)


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def processor_name() -> str:
    """The processor's name as Linux gives it, else the architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The checkout's commit, with "+" if files differ from it; None outside a checkout."""
    git = ("git", "-C", str(Path(__file__).parent))
    try:
        run = subprocess.run(
            (*git, "rev-parse", "HEAD"), capture_output=True, text=True, check=True
        )
        changed = subprocess.run((*git, "status", "--porcelain", "-uno"), capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip() + ("+" if changed.stdout else "")
