"""What the compilers made of the kernels in the last build of this checkout."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from build_tools import build_folder, compiled
from build_tools.architectures import DEFAULT_ARCHITECTURES, parse_arch_list
from build_tools.compiled import MOST_KERNELS, Table
from build_tools.disassembly import accesses_of, disassemble, find_cuobjdump, parse_disassembly
from build_tools.inner_loops import ARCHITECTURES, InnerLoop, inner_loops
from build_tools.report import CompiledFunction, parse_compiler_report, read_reports, spilling
from seblock_cuda import _core

ROOT = Path(__file__).resolve().parent.parent
BUILD = build_folder(ROOT)
INFO = _core.build_info()

needs_build = pytest.mark.skipif(
    not (BUILD / "build.ninja").exists(), reason="the library was not built in this checkout"
)
needs_filt = pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt")
needs_cuda_build = pytest.mark.skipif(not INFO["cuda"], reason="built without CUDA (no nvcc)")


@pytest.fixture(scope="module")
def reports() -> dict[str, list[CompiledFunction]]:
    return read_reports(BUILD)


@needs_build
@needs_cuda_build
def test_every_kernel_is_compiled_for_every_architecture(
    reports: dict[str, list[CompiledFunction]],
) -> None:
    cuda = ROOT / "csrc/cuda"
    sources = {
        f"cuda_{path.relative_to(cuda).as_posix().replace('/', '_')}" for path in cuda.rglob("*.cu")
    }
    assert set(reports) == sources
    expected = {
        f"sm_{arch.removesuffix('+PTX').replace('.', '')}" for arch in INFO["architectures"]
    }
    kernels = 0
    for source, functions in reports.items():
        architectures_of: dict[str, set[str]] = {}
        for function in functions:
            if function.is_kernel:
                architectures_of.setdefault(function.name, set()).add(function.architecture)
        for name, architectures in architectures_of.items():
            assert architectures == expected, f"{source}: {name}"
        kernels += len(architectures_of)
    assert kernels > 0


@needs_build
@needs_cuda_build
def test_no_kernel_spills_or_uses_a_stack(reports: dict[str, list[CompiledFunction]]) -> None:
    bad = spilling(reports)
    assert not bad, "\n".join(bad)


@needs_build
@needs_cuda_build
def test_the_default_architectures_are_covered() -> None:
    wanted = parse_arch_list(DEFAULT_ARCHITECTURES)
    if INFO["architectures"] != wanted:
        pytest.skip(
            f"built for {' '.join(INFO['architectures'])}; `make compile-check` builds for all"
        )
    assert INFO["architectures"] == wanted


# ---- against docs/maintainers/compiled.md


@pytest.fixture
def table() -> Table:
    return compiled.parse((ROOT / compiled.TABLE).read_text())


@needs_build
@needs_cuda_build
@needs_filt
def test_the_kernels_are_those_of_the_table(
    reports: dict[str, list[CompiledFunction]], table: Table
) -> None:
    kernels = compiled.collect(reports, {})
    differences = compiled.name_differences(table.kernels, kernels)
    assert not differences, "\n".join(["`make compiled` writes the table", *differences])
    assert len(kernels) < MOST_KERNELS


@needs_build
@needs_cuda_build
@needs_filt
def test_registers_and_library_have_not_grown(
    reports: dict[str, list[CompiledFunction]], table: Table
) -> None:
    mine = (INFO["cuda_version"], INFO["architectures"])
    if mine != (table.nvcc, table.architectures):
        pytest.skip(
            f"{compiled.TABLE} is of nvcc {table.nvcc} for {' '.join(table.architectures)}, the "
            f"build of nvcc {mine[0]} for {' '.join(mine[1])}"
        )
    megabytes = (BUILD / "libseblock_cuda.so").stat().st_size / 1e6
    built = Table(*mine, megabytes, compiled.collect(reports, {}))
    grown = compiled.growth(table, built)
    assert not grown, "\n".join(grown)


@needs_build
@needs_cuda_build
@needs_filt
@pytest.mark.skipif(find_cuobjdump() is None, reason="no cuobjdump")
def test_the_machine_code(reports: dict[str, list[CompiledFunction]], table: Table) -> None:
    """16-byte accesses, what a vector costs, no division: all that one disassembly shows."""
    present = [name for name in ARCHITECTURES if name in compiled.architectures_of(reports)]
    if not present:
        pytest.skip(f"the build has no code for {' or '.join(ARCHITECTURES)}")
    objects = [BUILD / "objects" / f"{source}.o" for source in reports]
    machine_code = {name: disassemble(objects, name) for name in present}
    kernels = compiled.collect(reports, machine_code)
    assert all(kernel.loads != "-" for kernel in kernels), "every kernel is found in the code"
    assert sum(kernel.is_vector for kernel in kernels) > 0
    found = compiled.narrow(table.kernels, kernels) + divisions(machine_code)
    if INFO["cuda_version"] == table.nvcc:
        found += compiled.costlier(table.kernels, kernels)
    assert not found, "\n".join(found)


def divisions(machine_code: dict[str, Any]) -> list[str]:
    """Kernels that walk over x with a reciprocal in them, which is how integers are divided."""
    return [
        f"{architecture}: {kernel}"
        for architecture, objects in machine_code.items()
        for code in objects.values()
        for kernel, instructions in code.items()
        if re.search("squeeze_kernel|scale_kernel", kernel)
        and any(instruction.name == "MUFU" for instruction in instructions)
    ]


# By the name of what is read or written: instructions for a vector of 16 bytes, at most. The design
# had 18 for a squeeze of rows, 23 for a scale of rows, 31 and 52 (backward 63) for planes, 40 for
# small planes, counted in loops without begin or end; docs/design.md says what the rest is.
BUDGET = {
    ("squeeze_kernel<true, nhwc, Input<bfloat16>>", "rows"): 27,
    ("squeeze_kernel<true, nchw, Input<bfloat16>>", "planes"): 27,
    ("squeeze_kernel<true, nchw, Input<bfloat16>>", "small planes"): 40,
    ("scale_kernel<true, nhwc, Gated<bfloat16, false>>", "rows"): 27,
    ("scale_kernel<true, nchw, Gated<bfloat16, false>>", "planes of whole vectors"): 35,
    ("scale_kernel<true, nchw, Gated<bfloat16, false>>", "planes"): 59,
    ("scale_kernel<true, nchw, GatedGradient<bfloat16, false>>", "planes"): 71,
}


@pytest.mark.parametrize(("name", "path"), BUDGET)
def test_the_table_is_within_the_budget(table: Table, name: str, path: str) -> None:
    (kernel,) = [kernel for kernel in table.kernels if kernel.name == name]
    for loop in kernel.loops[path].values():
        assert loop.instructions <= BUDGET[name, path]
        assert loop.in_flight >= (2 if path == "small planes" else 4)


# ---- the checks above go red


REPORT = """\
ptxas info    : Compiling entry function '_Z4scale_kernelv' for 'sm_90'
ptxas info    : Function properties for _Z4scale_kernelv
    0 bytes stack frame, 0 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem, 440 bytes cmem[0]
"""

DISASSEMBLY = """\
\t\tFunction : _Z4scale_kernelv
        /*0230*/              @!P3 LDG.E.128.CONSTANT R18, desc[UR4][R2.64] ;
        /*0240*/                   LDG.E R12, desc[UR4][R2.64+0x800] ;
        /*0250*/               @P0 STG.E.128 desc[UR4][R2.64], R8 ;
        /*0260*/                   LDS.128 R4, [R2] ;
        /*10270*/                  STG.E.U16 desc[UR4][R2.64], R8 ;
"""


def test_a_spill_in_a_report_shows() -> None:
    (function,) = parse_compiler_report(REPORT)
    assert (function.registers, function.shared, function.spills) == (40, 1024, 8)
    assert "spill loads 8" in spilling({"cuda_forward.cu": [function]})[0]
    assert not spilling({"": parse_compiler_report(REPORT.replace("8 bytes", "0 bytes"))})


def test_accesses_are_counted_by_width() -> None:
    (code,) = parse_disassembly(DISASSEMBLY).values()
    found = accesses_of(code)
    assert (found.loads, found.wide_loads, found.stores, found.wide_stores) == (2, 1, 2, 1)


def test_a_table_that_lacks_a_kernel_shows(table: Table) -> None:
    built = copy.deepcopy(table)
    lost = table.kernels.pop(3)
    assert compiled.name_differences(table.kernels, built.kernels) == [
        f"not in {compiled.TABLE}: {lost.key}"
    ]
    assert compiled.name_differences(built.kernels, table.kernels) == [
        f"only in {compiled.TABLE}: {lost.key}"
    ]


def test_growth_shows_beyond_the_slack(table: Table) -> None:
    built = copy.deepcopy(table)
    architecture = next(iter(built.kernels[3].registers))
    built.kernels[3].registers[architecture] += compiled.REGISTER_SLACK
    built.megabytes *= 1.05
    assert not compiled.growth(table, built)
    built.kernels[3].registers[architecture] += 1
    built.kernels[5].shared += 16
    built.megabytes *= 1.1
    assert len(compiled.growth(table, built)) == 3


@pytest.mark.parametrize("kind", ["loads", "stores"])
def test_a_vector_kernel_with_narrow_accesses_shows(table: Table, kind: str) -> None:
    assert not compiled.narrow(table.kernels, table.kernels)
    kernel = next(k for k in table.kernels if k.is_vector and k.name.startswith("scale_"))
    setattr(kernel, kind, "0 of 32")
    assert len(compiled.narrow(table.kernels, table.kernels)) == 1


def test_a_costlier_loop_shows(table: Table) -> None:
    built = copy.deepcopy(table)
    assert not compiled.costlier(table.kernels, built.kernels)
    loops = next(kernel.loops for kernel in built.kernels if kernel.loops)
    path = next(iter(loops))
    in_flight, instructions = loops[path]["sm_90"]
    loops[path]["sm_90"] = InnerLoop(in_flight - 1, instructions + 1)
    assert len(compiled.costlier(table.kernels, built.kernels)) == 2


SQUEEZE = """\
\t\tFunction : squeeze_kernel
        /*0000*/  @!P1 LDG.E.128 R20, desc[UR8][R16.64] ;
        /*0010*/       IADD3 R2, R2, R3, RZ ;
        /*0020*/       LDG.E.128 R8, desc[UR8][R16.64] ;
        /*0030*/       FADD R1, R21, R22 ;
        /*0040*/       LDG.E.128 R12, desc[UR8][R16.64] ;
        /*0050*/   @P5 BRA 0x0080 ;
        /*0060*/       SEL R13, R13, RZ, P5 ;
        /*0070*/       SEL R14, R14, RZ, P5 ;
        /*0080*/       FADD R1, R13, R14 ;
        /*0090*/       SHFL.BFLY PT, R9, R4, 0x10, 0x1f ;
"""


def test_loads_in_flight_and_instructions_are_counted() -> None:
    """Two loads before R21 is used; 9 instructions to the shuffle, 2 of them for border vectors."""
    (code,) = parse_disassembly(SQUEEZE).values()
    assert inner_loops("squeeze_kernel<true, nchw, Input<half>>", code) == {
        "planes": InnerLoop(2, 7 / 3)
    }
    assert inner_loops("product_kernel<Reduce<half>>", code) == {}


def test_a_division_shows() -> None:
    text = SQUEEZE.replace("SHFL.BFLY PT, R9, R4, 0x10, 0x1f", "MUFU.RCP R2, R3")
    assert not divisions({"sm_90": {"split.o": parse_disassembly(SQUEEZE)}})
    assert divisions({"sm_90": {"split.o": parse_disassembly(text)}}) == ["sm_90: squeeze_kernel"]


def test_the_table_reads_back_as_written(table: Table) -> None:
    assert compiled.render(table) == (ROOT / compiled.TABLE).read_text()


# ---- the code for the CPU


@needs_build
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
@pytest.mark.parametrize("variant", ["avx2", "avx512"])
def test_wide_vector_code_stays_in_its_own_functions(variant: str) -> None:
    """The linker keeps one copy of an inline function: a wide one would stop an older processor."""
    compiled = BUILD / "objects" / f"cpu_kernels_{variant}.cpp.o"
    if not compiled.exists():
        pytest.skip("not an x86-64 build")

    def shared_symbols(path: Path) -> set[str]:
        listing = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True)
        return set(re.findall(r"^\S+ [WVu] (.+)$", listing.stdout, re.M))

    baseline = shared_symbols(BUILD / "objects/cpu_kernels_baseline.cpp.o")
    assert shared_symbols(compiled) <= baseline  # the baseline is linked first, its copy is kept
