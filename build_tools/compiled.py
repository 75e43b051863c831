"""The committed table of what the compiler made of every kernel: docs/maintainers/compiled.md.

`python -m build_tools.compiled` writes it from the last build; `make compiled` builds first.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from build_tools import build_folder
from build_tools.disassembly import Instruction, accesses_of, disassemble
from build_tools.inner_loops import ARCHITECTURES, InnerLoop, inner_loops
from build_tools.report import CompiledFunction, read_reports, spilling

TABLE = Path("docs/maintainers/compiled.md")
MOST_KERNELS = 150
REGISTER_SLACK = 8  # the step in which a GPU hands them out
LIBRARY_SLACK = 1.1
LAYOUTS = ["nchw", "nhwc"]  # enum class Layout

HEAD = """\
# What the compiler made of the kernels

Written by `make compiled` from ptxas' report and the disassembly; `tests/test_compiled_code.py`
holds every build against it, so growth shows in review.

- **Exact**: the kernels, by source and name; no spills, no stack.
- **With slack**, for the same nvcc release and architectures: registers (8 more, the step in which
  a GPU hands them out), the library's size (a tenth more).
- **Loads, stores**: instructions on global memory, 128-bit ones of all, fewest to most over the
  architectures. Code is counted, not execution: a vector kernel (`true`, stream, resident) moves x
  by its 128-bit accesses, the others in it are gates and sums. `make audit` counts what is
  executed. The test asks for no fewer 128-bit ones than here.
- **shared**: static bytes. Dynamic shared memory is asked for at launch: see `make audit`.
- `Pass<...>` is named after its last part, which says what is written.
"""

LOOPS_HEAD = """
## What a vector costs

Instructions for each 16 bytes of x in the stages that walk over it, as strategy split has them;
`build_tools/inner_loops.py` says how they are counted. A squeeze's are those from a thread's first
load to where its sums leave it, start and end of its four vectors included; a scale's those from
store to store. **In flight**: loads of 16 bytes before the first is used. The test asks for no more
instructions, and no fewer loads in flight.
"""


@dataclass
class Kernel:
    """One instantiation, in all architectures."""

    source: str  # "forward"
    name: str  # "scale_kernel<true, nchw, Gated<half, false>>"
    registers: dict[str, int] = field(default_factory=dict)  # by architecture: "sm_90"
    shared: int = 0  # static bytes, the most
    loads: str = "-"  # "4 of 92-284"
    stores: str = "-"
    loops: dict[str, dict[str, InnerLoop]] = field(default_factory=dict)  # by path, architecture

    @property
    def key(self) -> str:
        return f"{self.source}: {self.name}"

    @property
    def is_vector(self) -> bool:
        """Accesses of 16 bytes to x."""
        return "_kernel<true, " in self.name or self.source in ("stream", "resident")


@dataclass
class Table:
    nvcc: str  # "13.0"
    architectures: list[str]  # ["9.0", "12.0+PTX"]
    megabytes: float  # of the library
    kernels: list[Kernel]


def short_names(mangled: Iterable[str]) -> dict[str, str]:
    """Mangled -> `scale_kernel<true, nchw, Gated<half, false>>`, by c++filt."""
    names = sorted(set(mangled))
    output = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return {name: shorten(line) for name, line in zip(names, output.stdout.splitlines())}


def shorten(demangled: str) -> str:
    """Without return type, namespaces and arguments."""
    name = demangled.removeprefix("void ").replace("(anonymous namespace)::", "")
    name = re.sub(r"\(seblock::Layout\)(\d+)", lambda found: LAYOUTS[int(found[1])], name)
    name = re.sub(r"\b(seblock|cuda)::", "", name).split("(")[0]
    name = re.sub(r"\b__(nv_)?(half|bfloat16)\b", r"\2", name)
    return re.sub(r"Pass<.*, (\w+<[^<>]*>) >", r"\1", name).replace("> >", ">>")


def wide_of(text: str) -> int:
    """The 128-bit accesses of "4 of 92-284"."""
    return int(text.split(" of ")[0])


def share(wide: list[int], total: list[int]) -> str:
    """Over the architectures: the fewest 128-bit accesses, of the fewest to the most at all."""
    most = f"-{max(total)}" if max(total) != min(total) else ""
    return f"{min(wide)} of {min(total)}{most}"


def collect(
    reports: dict[str, list[CompiledFunction]],
    machine_code: dict[str, dict[str, dict[str, list[Instruction]]]],
) -> list[Kernel]:
    """The kernels of `reports`; `machine_code` is by architecture, object's name, mangled name."""
    functions = [(source, f) for source, report in reports.items() for f in report if f.is_kernel]
    names = short_names(function.name for _, function in functions)
    kernels: dict[tuple[str, str], Kernel] = {}
    for source, function in functions:
        stem = source.removeprefix("cuda_").removeprefix("drivers_").removesuffix(".cu")
        kernel = kernels.setdefault((source, function.name), Kernel(stem, names[function.name]))
        kernel.registers[function.architecture] = function.registers or 0
        kernel.shared = max(kernel.shared, function.shared)
    for (source, mangled), kernel in kernels.items():
        present = []
        for architecture, objects in machine_code.items():
            code = objects[f"{source}.o"].get(mangled, [])
            present += [accesses_of(code)] if code else []
            if architecture in ARCHITECTURES:
                for path, loop in inner_loops(kernel.name, code).items():
                    kernel.loops.setdefault(path, {})[architecture] = loop
        # no code at all: an architecture that the kernel is not for
        present = [a for a in present if a.loads or a.stores] or present
        if present:
            kernel.loads = share([a.wide_loads for a in present], [a.loads for a in present])
            kernel.stores = share([a.wide_stores for a in present], [a.stores for a in present])
    return sorted(kernels.values(), key=lambda kernel: kernel.key)


def architectures_of(reports: dict[str, list[CompiledFunction]]) -> list[str]:
    """Those with machine code, oldest first."""
    names = {function.architecture for report in reports.values() for function in report}
    return sorted(names, key=lambda name: int(re.sub(r"\D", "", name)))


def render(table: Table) -> str:
    columns = list(dict.fromkeys(name for k in table.kernels for name in k.registers))
    most = max((max(kernel.registers.values()) for kernel in table.kernels), default=0)
    head = ["source", "kernel", *columns, "shared", "loads", "stores"]
    lines = [
        HEAD,
        "| | |",
        "|---|---|",
        f"| nvcc | {table.nvcc} |",
        f"| architectures | {' '.join(table.architectures)} |",
        f"| kernels | {len(table.kernels)} |",
        f"| registers, at most | {most} |",
        "| stack and spills | 0 bytes |",
        f"| library | {table.megabytes:.1f} MB |",
        "",
        "Registers per thread under each architecture:",
        "",
        f"| {' | '.join(head)} |",
        f"|---|---|{'---:|' * (len(head) - 2)}",
    ]
    for kernel in table.kernels:
        registers = [str(kernel.registers.get(name, "-")) for name in columns]
        cells = [kernel.source, f"`{kernel.name}`", *registers, str(kernel.shared)]
        lines.append(f"| {' | '.join([*cells, kernel.loads, kernel.stores])} |")
    heads = [f"in flight {name} | instructions {name}" for name in ARCHITECTURES]
    lines += [LOOPS_HEAD, f"| kernel | path | {' | '.join(heads)} |"]
    lines.append(f"|---|---|{'---:|' * 2 * len(ARCHITECTURES)}")
    for kernel in table.kernels:
        for path, loops in sorted(kernel.loops.items()):
            cells = [f"{loops[n].in_flight} | {loops[n].instructions:.0f}" for n in ARCHITECTURES]
            lines.append(f"| `{kernel.name}` | {path} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parse(text: str) -> Table:
    """The inverse of `render`."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    heads = [at for at, row in enumerate(rows) if row[0] in ("source", "kernel")]
    totals = dict(row for row in rows[: heads[0]] if len(row) == 2)
    columns = rows[heads[0]][2:-3]
    kernels: dict[str, Kernel] = {}
    for source, name, *cells in rows[heads[0] + 1 : heads[1]]:
        registers = {arch: int(cell) for arch, cell in zip(columns, cells) if cell != "-"}
        name = name.strip("`")
        kernels[name] = Kernel(source, name, registers, int(cells[-3]), cells[-2], cells[-1])
    for name, path, *cells in rows[heads[1] + 1 :]:
        loops = (InnerLoop(int(n), float(i)) for n, i in zip(cells[::2], cells[1::2]))
        kernels[name.strip("`")].loops[path] = dict(zip(ARCHITECTURES, loops))
    megabytes = float(totals["library"].split()[0])
    return Table(totals["nvcc"], totals["architectures"].split(), megabytes, list(kernels.values()))


def name_differences(table: list[Kernel], built: list[Kernel]) -> list[str]:
    """Kernels that only one of the two has."""
    old, new = ({kernel.key for kernel in kernels} for kernels in (table, built))
    added = [f"not in {TABLE}: {key}" for key in sorted(new - old)]
    return added + [f"only in {TABLE}: {key}" for key in sorted(old - new)]


def growth(table: Table, built: Table) -> list[str]:
    """What `built` has more of than `table` and the slack allow. Same nvcc and architectures."""
    found = []
    if built.megabytes > table.megabytes * LIBRARY_SLACK:
        found.append(f"library: {built.megabytes:.1f} MB, {table.megabytes:.1f} in {TABLE}")
    old = {kernel.key: kernel for kernel in table.kernels}
    for kernel in built.kernels:
        if (before := old.get(kernel.key)) is None:
            continue
        for name, registers in kernel.registers.items():
            if registers > before.registers.get(name, registers) + REGISTER_SLACK:
                text = f"{registers} registers, {before.registers[name]} in {TABLE}"
                found.append(f"{kernel.key} for {name}: {text}")
        if kernel.shared > before.shared:
            found.append(f"{kernel.key}: {kernel.shared} static bytes, {before.shared} in {TABLE}")
    return found


def narrow(table: list[Kernel], built: list[Kernel]) -> list[str]:
    """Vector kernels without 128-bit accesses to x, and those with fewer than in the table."""
    found = []
    old = {kernel.key: kernel for kernel in table}
    for kernel in built:
        before = old.get(kernel.key, kernel)
        for kind in ("loads", "stores"):
            here, there = wide_of(getattr(kernel, kind)), wide_of(getattr(before, kind))
            moves_x = kernel.is_vector and (kind == "loads" or "squeeze" not in kernel.name)
            if here < max(there, int(moves_x)):
                found.append(f"{kernel.key}: {here} 128-bit {kind}, {there} in {TABLE}")
    return found


def costlier(table: list[Kernel], built: list[Kernel]) -> list[str]:
    """Inner loops of more instructions, or with fewer loads in flight, than in the table."""
    found = []
    old = {kernel.key: kernel for kernel in table}
    for kernel in built:
        for path, loops in kernel.loops.items():
            for name, loop in loops.items():
                before = old[kernel.key].loops[path][name]
                what = f"{kernel.key}, {path}, {name}"
                if round(loop.instructions) > before.instructions:
                    cost = f"{loop.instructions:.0f} instructions a vector"
                    found.append(f"{what}: {cost}, {before.instructions:.0f} in {TABLE}")
                if loop.in_flight < before.in_flight:
                    cost = f"{loop.in_flight} loads in flight"
                    found.append(f"{what}: {cost}, {before.in_flight} in {TABLE}")
    return found


def main() -> int:
    """Writes the table; 1 where there is no CUDA build, or one that spills."""
    from seblock_cuda import _core

    root = Path(__file__).resolve().parent.parent
    build = build_folder(root)
    reports = read_reports(build)
    if not reports:
        print("no compiler report: the library was built without CUDA")
        return 1
    if bad := spilling(reports):
        print(*bad, sep="\n")
        return 1
    objects = [build / "objects" / f"{source}.o" for source in reports]
    machine_code = {name: disassemble(objects, name) for name in architectures_of(reports)}
    info = _core.build_info()
    megabytes = (build / "libseblock_cuda.so").stat().st_size / 1e6
    kernels = collect(reports, machine_code)
    table = Table(info["cuda_version"], info["architectures"], megabytes, kernels)
    (root / TABLE).write_text(render(table))
    print(f"{TABLE}: {len(table.kernels)} kernels, {megabytes:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
