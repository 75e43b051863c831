"""Counts the global loads and stores in the machine code of every kernel."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

_FUNCTION = re.compile(r"^\s*Function : (\S+)")
# LDG, STG, their generic forms LD and ST, LDGSTS; not LDS, LDL, LDC (shared, local, constant)
_ACCESS = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?(LDGSTS|LDG|LD|STG|ST)(\.\S+)? ")
_WIDE = re.compile(r"\.(128|256)\b")


@dataclass
class Accesses:
    """Instructions in the code, executed or not; wide ones move 16 bytes or more per thread."""

    loads: int = 0
    wide_loads: int = 0
    stores: int = 0
    wide_stores: int = 0


def parse_disassembly(text: str) -> dict[str, Accesses]:
    """The accesses by mangled kernel in the output of `cuobjdump -sass` for one architecture."""
    kernels: dict[str, Accesses] = {}
    current = Accesses()
    for line in text.splitlines():
        if found := _FUNCTION.match(line):
            current = kernels.setdefault(found[1], Accesses())
        elif found := _ACCESS.search(line):
            wide = bool(_WIDE.search(found[2] or ""))
            if found[1].startswith("LD"):
                current.loads += 1
                current.wide_loads += wide
            else:
                current.stores += 1
                current.wide_stores += wide
    return kernels


def find_cuobjdump() -> str | None:
    """The disassembler that triton brings along, or one on PATH."""
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        inside = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
        if inside.exists():
            return str(inside)
    return shutil.which("cuobjdump")


def disassemble(objects: Iterable[Path], architecture: str) -> dict[str, dict[str, Accesses]]:
    """The accesses by object's name and mangled kernel in the code for `architecture` (sm_90)."""
    program = find_cuobjdump()
    if program is None:
        raise FileNotFoundError("no cuobjdump: neither in triton nor on PATH")

    def accesses(path: Path) -> dict[str, Accesses]:
        command = [program, "-arch", architecture, "-sass", str(path)]
        output = subprocess.run(command, capture_output=True, text=True, check=True)
        return parse_disassembly(output.stdout)

    paths = list(objects)
    with ThreadPoolExecutor(2) as pool:  # the work is in the processes
        return dict(zip((path.name for path in paths), pool.map(accesses, paths)))
