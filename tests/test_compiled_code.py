"""What the compilers made of the kernels in the last build of this checkout."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from build_tools import build_folder
from build_tools.architectures import DEFAULT_ARCHITECTURES, parse_arch_list
from build_tools.report import CompiledFunction, read_reports
from seblock_cuda import _core

ROOT = Path(__file__).resolve().parent.parent
BUILD = build_folder(ROOT)
INFO = _core.build_info()

needs_build = pytest.mark.skipif(
    not (BUILD / "build.ninja").exists(), reason="the library was not built in this checkout"
)
needs_cuda_build = pytest.mark.skipif(not INFO["cuda"], reason="built without CUDA (no nvcc)")


@pytest.fixture(scope="module")
def reports() -> dict[str, list[CompiledFunction]]:
    return read_reports(BUILD)


@needs_build
@needs_cuda_build
def test_every_kernel_is_compiled_for_every_architecture(
    reports: dict[str, list[CompiledFunction]],
) -> None:
    sources = {f"cuda_{path.name}" for path in (ROOT / "csrc/cuda").glob("*.cu")}
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
    bad = [
        f"{source} {function.name} for {function.architecture}: stack {function.stack}, "
        f"spill stores {function.spill_stores}, spill loads {function.spill_loads} bytes"
        for source, functions in reports.items()
        for function in functions
        if function.stack or function.spill_stores or function.spill_loads
    ]
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
