"""The decisions of the build, apart from running it. `setup.py` uses them, the tests call them."""

from __future__ import annotations

import contextlib
import re
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

BYTES_PER_JOB = 2 << 30  # what one compiler process may need


class BuildError(Exception):
    """Something the user has to change; `setup.py` prints it without a traceback."""


def build_folder(root: Path) -> Path:
    """Where objects, generated header and compiler reports lie, per platform and Python."""
    return root / "build" / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"


def available_memory() -> int | None:
    """Free bytes: the machine's, or the container's where that is less."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.M)
    limits = [int(match[1]) * 1024] if match else []
    with contextlib.suppress(OSError, ValueError):  # no limit ("max"), or an older kind of group
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits) if limits else None


def job_count(environ: Mapping[str, str], processors: int, memory: int | None) -> int:
    """`MAX_JOBS`, or one job per processor as far as the memory goes."""
    wanted = environ.get("MAX_JOBS", "").strip()
    if wanted:
        if not wanted.isdigit() or int(wanted) < 1:
            raise BuildError(f"MAX_JOBS must be a positive number, got {wanted!r}")
        return int(wanted)
    if memory is None:
        return max(1, processors)
    return max(1, min(processors, memory // BYTES_PER_JOB))
