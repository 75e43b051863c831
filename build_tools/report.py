"""Reads what ptxas reported about every kernel while the library was built."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from build_tools import build_folder

_ENTRY = re.compile(r"Compiling entry function '([^']+)' for '(sm_\w+)'")
_FUNCTION = re.compile(r"Function properties for (\S+)")
_USAGE = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass
class CompiledFunction:
    """One kernel, or one device function that was not inlined, for one architecture."""

    name: str  # mangled
    architecture: str  # "sm_90"
    is_kernel: bool
    stack: int
    spill_stores: int
    spill_loads: int
    registers: int | None = None  # of a kernel
    shared: int = 0  # static bytes, of a kernel

    @property
    def spills(self) -> int:
        return self.spill_stores + self.spill_loads


def parse_compiler_report(text: str) -> list[CompiledFunction]:
    """The functions in the output of `nvcc -Xptxas -v`."""
    functions: list[CompiledFunction] = []
    kernel = architecture = name = ""
    for line in text.splitlines():
        if found := _ENTRY.search(line):
            kernel, architecture = found[1], found[2]
        elif found := _FUNCTION.search(line):
            name = found[1]
        elif found := _USAGE.search(line):
            usage = (int(number) for number in found.groups())
            functions.append(CompiledFunction(name, architecture, name == kernel, *usage))
        elif found := _REGISTERS.search(line):
            for function in functions[::-1]:
                if function.name == kernel and function.architecture == architecture:
                    function.registers = int(found[1])
                    if shared := _SHARED.search(line):
                        function.shared = int(shared[1])
                    break
    return functions


def read_reports(folder: Path) -> dict[str, list[CompiledFunction]]:
    """The reports of the build in `folder`, by CUDA source."""
    reports = sorted((folder / "objects").glob("*.ptxas"))
    return {
        report.name.removesuffix(".o.ptxas"): parse_compiler_report(report.read_text())
        for report in reports
    }


def spilling(reports: dict[str, list[CompiledFunction]]) -> list[str]:
    """Every function that spills or uses a stack, in words."""
    return [
        f"{source} {function.name} for {function.architecture}: stack {function.stack}, "
        f"spill stores {function.spill_stores}, spill loads {function.spill_loads} bytes"
        for source, functions in reports.items()
        for function in functions
        if function.stack or function.spills
    ]


def main() -> int:
    """Prints one line per source and architecture; 1 if there is a spill, a stack or no report."""
    reports = read_reports(build_folder(Path(__file__).resolve().parent.parent))
    if not reports:
        print("no compiler report: the library was built without CUDA")
        return 1
    bad = 0
    print(f"{'source':24} {'for':8} {'kernels':>7} {'registers':>9} {'stack':>6} {'spills':>6}")
    for source, functions in reports.items():
        for architecture in dict.fromkeys(function.architecture for function in functions):
            mine = [function for function in functions if function.architecture == architecture]
            kernels = sum(function.is_kernel for function in mine)
            registers = max(function.registers or 0 for function in mine)
            stack = sum(function.stack for function in mine)
            spills = sum(function.spills for function in mine)
            print(f"{source:24} {architecture:8} {kernels:7} {registers:9} {stack:6} {spills:6}")
            bad += stack + spills
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
