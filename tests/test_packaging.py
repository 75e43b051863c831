"""The build itself, on a copy of the project with a few lines of C++, and the metadata."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import seblock_cuda

ROOT = Path(__file__).resolve().parent.parent

OPS = '#include "se_types.h"\nint answer() { return ANSWER; }\n'
CORE = """\
#include <Python.h>
#include "build_info.h"
static PyObject* info(PyObject*, PyObject*) {
  const seblock::BuildInfo built = seblock::build_info();
  return Py_BuildValue("(isns)", int(built.cuda), built.torch_version.c_str(),
                       Py_ssize_t(built.architectures.size()), built.flags.c_str());
}
static PyMethodDef methods[] = {{"info", info, METH_NOARGS, nullptr},
                                {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_core", nullptr, -1, methods, nullptr, nullptr,
                             nullptr, nullptr};
PyMODINIT_FUNC PyInit__core() { return PyModule_Create(&module); }
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project with the real setup.py, in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("a project") / "seblock cuda"
    (folder / "csrc/cpu").mkdir(parents=True)
    (folder / "seblock_cuda/convert").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "build_tools"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / name)
    (folder / "README.md").touch()
    shutil.copy(ROOT / "csrc/build_info.h", folder / "csrc")
    (folder / "csrc/se_types.h").write_text("#define ANSWER 42\n")
    (folder / "csrc/ops.cpp").write_text(OPS)
    for plan in (ROOT / "csrc").glob("plan*.cpp"):
        (folder / "csrc" / plan.name).write_text("")
    (folder / "csrc/cpu/kernels_baseline.cpp").write_text("")
    (folder / "csrc/core.cpp").write_text(CORE)
    (folder / "seblock_cuda/__init__.py").write_text("")
    (folder / "seblock_cuda/convert/__init__.py").write_text("")
    (folder / "seblock_cuda/py.typed").touch()
    (folder / "seblock_cuda/_core.pyi").touch()
    return folder


def run_setup(
    project: Path, *arguments: str, check: bool = True, **environ: str
) -> subprocess.CompletedProcess[str]:
    cleared = ("CXX", "CXXFLAGS", "MAX_JOBS", "TORCH_CUDA_ARCH_LIST", "SEBLOCK_NVCC")
    base = {name: value for name, value in os.environ.items() if name not in cleared}
    done = subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=project,
        env={**base, "SEBLOCK_WITH_CUDA": "0", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert not check or done.returncode == 0, done.stdout
    return done


def test_in_place_build_is_incremental(project: Path) -> None:
    first = run_setup(project, "build_ext", "--inplace").stdout
    assert "CPU only (SEBLOCK_WITH_CUDA=0)" in first
    library = project / "seblock_cuda/libseblock_cuda.so"
    built = library.stat()
    start = time.perf_counter()
    second = run_setup(project, "build_ext", "--inplace").stdout
    assert "no work to do" in second
    assert time.perf_counter() - start < 10  # about one second on an idle machine
    assert library.stat().st_ino == built.st_ino  # a running process keeps its file

    (project / "csrc/se_types.h").write_text("#define ANSWER 43\n")
    third = run_setup(project, "build_ext", "--inplace").stdout
    assert "c++ ops.cpp" in third and "c++ core.cpp" not in third


def test_a_removed_source_leaves_nothing_behind(project: Path) -> None:
    extra = project / "csrc/cpu/extra.cpp"
    extra.touch()
    run_setup(project, "build_ext", "--inplace")
    assert list(project.glob("build/*/objects/cpu_extra*"))
    extra.unlink()
    run_setup(project, "build_ext", "--inplace")
    assert not list(project.glob("build/*/objects/cpu_extra*.o"))


def test_build_info_reaches_the_module(project: Path) -> None:
    run_setup(project, "build_ext", "--inplace")
    (built,) = (project / "seblock_cuda").glob("_core.*.so")
    spec = importlib.util.spec_from_file_location("_core", built)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cuda, torch_version, architectures, flags = module.info()
    assert (cuda, architectures) == (0, 0)
    assert re.match(r"2\.\d+", torch_version)
    assert "-std=c++20" in flags and str(project) not in flags


def test_a_compile_error_is_shown_and_fails(project: Path) -> None:
    source = project / "csrc/ops.cpp"
    try:
        source.write_text("#error the reason is here\n")
        failed = run_setup(project, "build_ext", "--inplace", check=False)
    finally:
        source.write_text(OPS)
    assert failed.returncode != 0
    assert "the reason is here" in failed.stdout
    assert "error: the build failed" in failed.stdout
    assert "Traceback" not in failed.stdout


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"MAX_JOBS": "none"}, "error: MAX_JOBS must be a positive number, got 'none'"),
        ({"SEBLOCK_WITH_CUDA": "2"}, "error: SEBLOCK_WITH_CUDA must be auto, 1 or 0, got '2'"),
        ({"CXX": "no-such-compiler"}, "error: no C++ compiler: tried no-such-compiler"),
    ],
)
def test_bad_settings_are_one_line(project: Path, environ: dict[str, str], message: str) -> None:
    failed = run_setup(project, "build_ext", "--inplace", check=False, **environ)
    assert failed.returncode != 0
    assert message in failed.stdout
    assert "Traceback" not in failed.stdout


def test_max_jobs_is_honoured(project: Path) -> None:
    assert ", 3 jobs" in run_setup(project, "build_ext", "--inplace", MAX_JOBS="3").stdout


def test_wheel_holds_the_package_and_nothing_else(project: Path, tmp_path: Path) -> None:
    run_setup(project, "build_ext", "--inplace")  # its results must not be packed twice
    run_setup(project, "bdist_wheel", "--dist-dir", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    assert not wheel.name.endswith("-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    package = [name for name in names if name.startswith("seblock_cuda/")]
    assert sorted(re.sub(r"_core\..*\.so", "_core.so", name) for name in package) == [
        "seblock_cuda/__init__.py",
        "seblock_cuda/_core.pyi",
        "seblock_cuda/_core.so",
        "seblock_cuda/convert/__init__.py",
        "seblock_cuda/libseblock_cuda.so",
        "seblock_cuda/py.typed",
    ]
    others = {name.split("/")[0] for name in names} - {"seblock_cuda"}
    assert all(name.endswith(".dist-info") for name in others)


def test_the_version_is_the_same_everywhere() -> None:
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert declared is not None and declared[1] == seblock_cuda.__version__


def test_pins_are_exact() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r'[a-z0-9-]+==[\w.]+(; python_version (<|>=) "3\.\d+")?', line), (
                line
            )
