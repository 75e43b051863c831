"""The machine code of every kernel, read from `cuobjdump -sass`."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_INSTRUCTION = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9]*)((?:\.\w+)*)\s*([^;]*);"
)


class Instruction(NamedTuple):
    """`@P0 LDG.E.128 R8, desc[UR8][R34.64]`: LDG, .E.128 and what follows."""

    address: int
    name: str
    modifiers: str
    operands: str

    @property
    def is_wide(self) -> bool:
        """Moves 16 bytes or more per thread."""
        return re.search(r"\.(128|256)\b", self.modifiers) is not None

    def mentions(self, registers: set[int]) -> bool:
        return any(int(number) in registers for number in re.findall(r"\bR(\d+)", self.operands))


@dataclass
class Accesses:
    """Instructions on global memory in the code, executed or not."""

    loads: int = 0
    wide_loads: int = 0
    stores: int = 0
    wide_stores: int = 0


def accesses_of(code: Iterable[Instruction]) -> Accesses:
    """LDG, STG, their generic forms LD and ST, LDGSTS; not LDS, LDL, LDC: not global memory."""
    found = Accesses()
    for instruction in code:
        if instruction.name in ("LDGSTS", "LDG", "LD"):
            found.loads += 1
            found.wide_loads += instruction.is_wide
        elif instruction.name in ("STG", "ST"):
            found.stores += 1
            found.wide_stores += instruction.is_wide
    return found


def parse_disassembly(text: str) -> dict[str, list[Instruction]]:
    """The code by mangled kernel in the output of `cuobjdump -sass` for one architecture."""
    kernels: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    for line in text.splitlines():
        if found := _FUNCTION.match(line):
            code = kernels.setdefault(found[1], [])
        elif (found := _INSTRUCTION.search(line)) and found[2] != "NOP":
            code.append(Instruction(int(found[1], 16), *found.groups()[1:]))
    return kernels


def find_cuobjdump() -> str | None:
    """The disassembler that triton brings along, or one on PATH."""
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        inside = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
        if inside.exists():
            return str(inside)
    return shutil.which("cuobjdump")


def disassemble(
    objects: Iterable[Path], architecture: str
) -> dict[str, dict[str, list[Instruction]]]:
    """By object's name and mangled kernel, the code for `architecture` (sm_90)."""
    program = find_cuobjdump()
    if program is None:
        raise FileNotFoundError("no cuobjdump: neither in triton nor on PATH")

    def code(path: Path) -> dict[str, list[Instruction]]:
        command = [program, "-arch", architecture, "-sass", str(path)]
        output = subprocess.run(command, capture_output=True, text=True, check=True)
        return parse_disassembly(output.stdout)

    paths = list(objects)
    with ThreadPoolExecutor(2) as pool:  # the work is in the processes
        return dict(zip((path.name for path in paths), pool.map(code, paths)))
