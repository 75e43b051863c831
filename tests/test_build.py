"""The decisions of the build: toolkit, architectures, jobs, reports. Nothing is compiled."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from build_tools import BYTES_PER_JOB, BuildError, job_count
from build_tools.architectures import (
    DEFAULT_ARCHITECTURES,
    SOURCES,
    choose_architectures,
    gencode_flags,
    parse_arch_list,
)
from build_tools.report import parse_compiler_report
from build_tools.toolkit import Toolkit, choose_toolkit, find_nvcc, mismatch

ROOT = Path(__file__).resolve().parent.parent

CUDA_13 = [f"compute_{number}" for number in (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)]
CUDA_12_4 = [f"compute_{number}" for number in (50, 60, 70, 75, 80, 86, 87, 89, 90)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9.0", ["9.0"]),
        ("All", ["7.5", "8.0", "8.6", "9.0", "10.0", "12.0"]),
        ("8.0;9.0", ["8.0", "9.0"]),
        ("8.0 9.0", ["8.0", "9.0"]),
        (" 8.0, 9.0 ;", ["8.0", "9.0"]),
        ("9.0a", ["9.0a"]),
        ("10.0f;9.0a+PTX", ["9.0a+PTX", "10.0f"]),
        ("12.0+PTX;8.0", ["8.0", "12.0+PTX"]),
        ("9.0;9.0+ptx", ["9.0+PTX"]),
        ("Hopper", ["9.0"]),
        ("ampere+PTX", ["8.0", "8.6+PTX"]),
        ("Turing;Ada;Blackwell", ["7.5", "8.9", "10.0", "12.0"]),
        (DEFAULT_ARCHITECTURES, ["7.5", "8.0", "8.6", "9.0", "10.0", "12.0+PTX"]),
    ],
)
def test_arch_list_forms(text: str, expected: list[str]) -> None:
    assert parse_arch_list(text) == expected


@pytest.mark.parametrize(
    "text", ["", " ; ", "90", "sm_90", "9", "9.0+CUBIN", "Pascal Hopper", "9.0b"]
)
def test_unreadable_arch_list_is_refused_by_name(text: str) -> None:
    with pytest.raises(BuildError, match="TORCH_CUDA_ARCH_LIST"):
        parse_arch_list(text)


def test_gencode_flags() -> None:
    assert gencode_flags(["7.0", "8.0", "8.6", "9.0a", "12.0+PTX"]) == [
        "-gencode=arch=compute_70,code=sm_70",
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_80,code=sm_86",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90,code=sm_120",
        "-gencode=arch=compute_90,code=compute_90",
    ]


def test_architectures_that_share_a_compilation_have_the_same_source() -> None:
    tested = {
        int(number)
        for file in (ROOT / "csrc").rglob("*")
        if file.is_file()
        for number in re.findall(r"__CUDA_ARCH__ \S+ (\d+)", file.read_text())
    }
    assert tested and tested <= {10 * source for source in SOURCES}


def test_default_architectures() -> None:
    assert choose_architectures({}, CUDA_13) == parse_arch_list(DEFAULT_ARCHITECTURES)
    assert choose_architectures({"TORCH_CUDA_ARCH_LIST": ""}, CUDA_13)[0] == "7.5"


def test_an_older_nvcc_builds_what_it_knows_and_ptx_for_the_rest() -> None:
    assert choose_architectures({}, CUDA_12_4) == ["7.5", "8.0", "8.6", "9.0+PTX"]


def test_an_explicit_list_is_never_cut() -> None:
    assert choose_architectures({"TORCH_CUDA_ARCH_LIST": "9.0a"}, CUDA_12_4) == ["9.0a"]
    with pytest.raises(BuildError, match=r"cannot compile for 12\.0\+PTX; it knows compute_50"):
        choose_architectures({"TORCH_CUDA_ARCH_LIST": "8.0;12.0+PTX"}, CUDA_12_4)


@pytest.mark.parametrize(
    ("environ", "processors", "gigabytes", "expected"),
    [
        ({}, 16, 128, 16),
        ({}, 16, 8, 4),  # memory is the limit
        ({}, 16, 1, 1),  # never none
        ({}, 4, None, 4),  # memory unknown
        ({"MAX_JOBS": "7"}, 2, 1, 7),  # the user knows better
        ({"MAX_JOBS": ""}, 2, 64, 2),
    ],
)
def test_jobs(
    environ: dict[str, str], processors: int, gigabytes: int | None, expected: int
) -> None:
    memory = None if gigabytes is None else gigabytes * BYTES_PER_JOB // 2
    assert job_count(environ, processors, memory) == expected


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_bad_max_jobs(value: str) -> None:
    with pytest.raises(BuildError, match="MAX_JOBS must be a positive number"):
        job_count({"MAX_JOBS": value}, 2, None)


# ---- finding nvcc: toolkits made of a shell script and empty files


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def make_toolkit(root: Path, version: str = "13.0", library: str = "lib64") -> Path:
    for name in ("include/cuda_runtime.h", f"{library}/libcudart_static.a"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return script(
        root / "bin/nvcc",
        f'case "$1" in -dryrun) echo "#\\$ TOP={root}/bin/..";; '
        f'*) echo "Cuda compilation tools, release {version}, V{version}.88";; esac',
    )


def find(environ: dict[str, str], site: Path, system: Path) -> tuple[Toolkit | None, list[str]]:
    return find_nvcc({"PATH": "", **environ}, [site], system)


def test_order_of_the_places(tmp_path: Path) -> None:
    site, system = tmp_path / "site", tmp_path / "system"
    explicit = make_toolkit(tmp_path / "explicit")
    make_toolkit(tmp_path / "home")
    pip = make_toolkit(site / "nvidia/cu13", library="lib")
    wrapped = make_toolkit(tmp_path / "wrapped")
    on_path = script(tmp_path / "path/nvcc", f'exec {wrapped} "$@"')
    last = make_toolkit(system)
    environ = {
        "SEBLOCK_NVCC": str(explicit),
        "CUDA_HOME": str(tmp_path / "home"),
        "PATH": f"{on_path.parent}:/usr/bin:/bin",
    }
    for leave_out, expected in [
        ("SEBLOCK_NVCC", explicit),
        ("CUDA_HOME", tmp_path / "home/bin/nvcc"),
        ("pip", pip),
        ("PATH", on_path),
        ("system", last),
    ]:
        toolkit, _ = find(environ, site, system)
        assert toolkit is not None and toolkit.nvcc == expected
        environ.pop(leave_out, None)
        if leave_out == "pip":
            pip.unlink()
    last.unlink()
    toolkit, tried = find(environ, site, system)
    assert toolkit is None
    assert [place.split(":")[0] for place in tried] == ["pip", "PATH", "system"]


@pytest.mark.parametrize("library", ["lib64", "lib", "targets/x86_64-linux/lib"])
def test_where_the_runtime_library_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setattr("build_tools.toolkit.platform.machine", lambda: "x86_64")
    make_toolkit(tmp_path / "cuda", "12.8", library)
    toolkit, _ = find({"CUDA_PATH": str(tmp_path / "cuda")}, tmp_path, tmp_path)
    assert toolkit is not None
    assert toolkit.library == tmp_path / "cuda" / library
    assert toolkit.version == "12.8"


def test_a_wrapper_script_leads_to_the_toolkit_behind_it(tmp_path: Path) -> None:
    behind = make_toolkit(tmp_path / "real")
    wrapper = script(tmp_path / "bin/nvcc", f'exec {behind} "$@"')
    toolkit, _ = find({"SEBLOCK_NVCC": str(wrapper)}, tmp_path / "none", tmp_path / "none")
    assert toolkit is not None
    assert toolkit.include == tmp_path / "real/include"


def test_a_link_leads_to_the_toolkit_behind_it(tmp_path: Path) -> None:
    behind = make_toolkit(tmp_path / "real")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nvcc").symlink_to(behind)
    toolkit, _ = find({"PATH": str(tmp_path / "bin")}, tmp_path / "none", tmp_path / "none")
    assert toolkit is not None
    assert toolkit.include == tmp_path / "real/include"


@pytest.mark.parametrize("missing", ["include/cuda_runtime.h", "lib64/libcudart_static.a"])
def test_half_a_toolkit_is_passed_over_with_the_reason(tmp_path: Path, missing: str) -> None:
    make_toolkit(tmp_path / "half")
    (tmp_path / "half" / missing).unlink()
    whole = make_toolkit(tmp_path / "whole")
    toolkit, tried = find({"CUDA_HOME": str(tmp_path / "half")}, tmp_path, tmp_path / "whole")
    assert toolkit is not None and toolkit.nvcc == whole
    assert Path(missing).name in tried[0]


def test_with_cuda_1_and_no_nvcc_names_every_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find_nvcc, "__defaults__", (tmp_path / "system",))
    environ = {"SEBLOCK_WITH_CUDA": "1", "CUDA_HOME": str(tmp_path / "home"), "PATH": ""}
    with pytest.raises(BuildError) as error:
        choose_toolkit(environ, [tmp_path / "site"])
    message = str(error.value)
    for place in ("home/bin/nvcc", "site/nvidia/cu*/bin/nvcc", "PATH: nvcc", "system/bin/nvcc"):
        assert place in message
    assert choose_toolkit({**environ, "SEBLOCK_WITH_CUDA": "auto"}, [tmp_path / "site"]) is None
    assert choose_toolkit({**environ, "SEBLOCK_WITH_CUDA": ""}, [tmp_path / "site"]) is None


def test_a_cuda_torch_without_an_nvcc_is_told_the_two_ways_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find_nvcc, "__defaults__", (tmp_path / "system",))
    environ = {"CUDA_HOME": str(tmp_path / "home"), "PATH": ""}
    with pytest.raises(BuildError) as refused:
        choose_toolkit(environ, [tmp_path / "site"], "12.8")
    text = str(refused.value)
    assert "torch is a build for CUDA 12.8, but there is no usable nvcc" in text
    assert 'pip install "cuda-toolkit[nvcc,cccl]==12.8.*"' in text
    assert "SEBLOCK_WITH_CUDA=0 pip install" in text
    environ["SEBLOCK_WITH_CUDA"] = "0"
    assert choose_toolkit(environ, [tmp_path / "site"], "12.8") is None


@pytest.mark.parametrize(
    ("torch_cuda", "warns"), [("13.0", False), ("13.2", False), ("12.8", True), (None, False)]
)
def test_a_toolkit_of_another_cuda_than_torchs(torch_cuda: str | None, warns: bool) -> None:
    toolkit = Toolkit(Path("nvcc"), Path("include"), Path("lib"), "13.0")
    found = mismatch(toolkit, torch_cuda)
    assert (found is not None) == warns
    assert not found or "nvcc is of CUDA 13.0, torch of CUDA 12.8" in found
    assert mismatch(None, torch_cuda) is None


def test_native_is_answered_with_what_to_name() -> None:
    with pytest.raises(BuildError, match="name its architecture instead of native"):
        parse_arch_list("native")


def test_with_cuda_0_looks_nowhere(tmp_path: Path) -> None:
    environ = {"SEBLOCK_WITH_CUDA": "0", "SEBLOCK_NVCC": str(make_toolkit(tmp_path / "cuda"))}
    assert choose_toolkit(environ, []) is None


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="must be auto, 1 or 0, got 'yes'"):
        choose_toolkit({"SEBLOCK_WITH_CUDA": "yes"}, [])
    with pytest.raises(BuildError, match=r"SEBLOCK_NVCC=.*nothing cannot be used: not there"):
        choose_toolkit({"SEBLOCK_NVCC": str(tmp_path / "nothing")}, [])


# ---- the compiler's report

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1aPf' for 'sm_75'
ptxas info    : Function properties for _Z1aPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 26 registers, used 1 barriers, 360 bytes cmem[0]
ptxas info    : Compile time = 17.727 ms
ptxas info    : Compiling entry function '_Z1bPf' for 'sm_120'
ptxas info    : Function properties for _Z1hPf
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for _Z1bPf
    16 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, 384 bytes smem, 360 bytes cmem[0]
"""


def test_compiler_report() -> None:
    first, helper, second = parse_compiler_report(REPORT)
    assert (first.name, first.architecture, first.registers) == ("_Z1aPf", "sm_75", 26)
    assert first.stack == first.spill_stores == first.spill_loads == 0
    assert (helper.name, helper.is_kernel, helper.stack) == ("_Z1hPf", False, 8)
    assert (second.stack, second.spill_stores, second.spill_loads) == (16, 4, 12)
    assert second.is_kernel and second.registers == 255
