"""The build itself, on a copy of the project with a few lines of C++, and the metadata."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from email.message import Message
from pathlib import Path

import pybind11
import pytest
import torch

import seblock_cuda
from build_tools import release_check

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


SITE_PACKAGES = "import sysconfig; print(sysconfig.get_path('purelib'))"


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
    for other in (ROOT / "csrc").glob("*.cpp"):
        (folder / "csrc" / other.name).touch()
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


VECTORS = {  # as in setup.py
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c",
}


@pytest.mark.parametrize("compiler", ["g++-11", "clang++-14", "clang++-16", "clang++-19"])
def test_other_compilers_take_the_sources(compiler: str) -> None:
    """Those that are here; what .venv builds with is another one."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    includes = [Path(torch.__file__).parent / "include", Path(pybind11.get_include())]
    includes += [Path(sysconfig.get_path("include"))]
    setup = (ROOT / "setup.py").read_text()
    target = re.findall(r'^TORCH_TARGET = "(.+)"', setup, re.M)
    sources = [source for source in (ROOT / "csrc").glob("*.cpp") if source.name != "core.cpp"]
    for source in [*sources, *(ROOT / "csrc/cpu").glob("*.cpp")]:
        of_torch = target if source.name == "ops.cpp" else []
        command = [
            compiler,
            "-std=c++20",
            "-fsyntax-only",
            "-Wall",
            "-Wextra",
            "-Werror",
            *of_torch,
        ]
        command += [f"-I{ROOT / 'csrc'}", *(f"-isystem{folder}" for folder in includes)]
        extra = [flags for name, flags in VECTORS.items() if name in source.name]
        if extra and platform.machine() == "x86_64":
            command += extra[0].split()
        done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{source.name}:\n{done.stderr}"


def test_max_jobs_is_honoured(project: Path) -> None:
    assert ", 3 jobs" in run_setup(project, "build_ext", "--inplace", MAX_JOBS="3").stdout


def wheel_of(project: Path, folder: Path) -> zipfile.ZipFile:
    run_setup(project, "bdist_wheel", "--dist-dir", str(folder))
    (wheel,) = folder.glob("*.whl")
    assert not wheel.name.endswith("-any.whl")
    return zipfile.ZipFile(wheel)


def test_wheel_holds_the_package_and_nothing_else(project: Path, tmp_path: Path) -> None:
    run_setup(project, "build_ext", "--inplace")  # its results must not be packed twice
    wheel_of(project, tmp_path / "before")
    (before,) = project.glob("build/lib*/seblock_cuda")
    (before / "deleted.py").touch()
    names = wheel_of(project, tmp_path / "now").namelist()
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


def test_wheel_says_nothing_of_the_machine_that_built_it(project: Path, tmp_path: Path) -> None:
    """Nor is it larger than it has to be: no symbols but those that are looked up."""
    source, names = project / "csrc/ops.cpp", "const char* file() { return __FILE__; }\n"
    try:
        source.write_text(OPS + '__attribute__((visibility("default"))) ' + names)
        wheel = wheel_of(project, tmp_path)
    finally:
        source.write_text(OPS)
    for name in (name for name in wheel.namelist() if name.endswith(".so")):
        binary = wheel.read(name)
        assert b"csrc/ops.cpp" in binary or "_core" in name
        for path in (project, Path(sys.prefix), Path(sys.base_prefix), Path(torch.__file__).parent):
            assert str(path).encode() not in binary
        assert b".symtab" not in binary and b".debug_info" not in binary


def test_type_checkers_follow_an_editable_install(project: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    venv.create(tmp_path / "venv", system_site_packages=True)
    python = tmp_path / "venv/bin/python"
    # the packages of this environment, which need not be the system's
    site = Path(subprocess.check_output([python, "-c", SITE_PACKAGES], text=True).strip())
    (site / "outer.pth").write_text(sysconfig.get_path("purelib"))
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    environ = {**os.environ, "SEBLOCK_WITH_CUDA": "0"}
    subprocess.run([*install, "-e", str(project)], check=True, env=environ, cwd=tmp_path)
    (tmp_path / "user.py").write_text("import seblock_cuda\nreveal_type(seblock_cuda)\n")
    check = ["-m", "mypy", "--python-executable", str(python), "--no-incremental", "user.py"]
    done = subprocess.run(
        [sys.executable, *check], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "types.ModuleType" in done.stdout


def test_what_a_release_needs(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@y.z"]
        subprocess.run(["git", *who, "-C", tmp_path, *arguments], check=True, capture_output=True)

    def missing() -> list[str]:
        return release_check.missing("1.2.0", metadata, names, tmp_path)

    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    metadata, names = Message(), ["x-1.2.0-cp311-cp311-linux_x86_64.whl"]
    metadata["Version"] = "1.1.0"
    metadata.set_payload("[here](docs/install.md) [there](https://x.y) [above](#use)")
    for topic in ("version: ", "changelog: ", "tag: ", "metadata: no url Source", "metadata: no A"):
        assert any(line.startswith(topic) for line in missing()), topic
    assert "long description: 1 links" in str(missing()) and "not a manylinux one" in str(missing())

    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0 (2027-01-02)\n")
    assert "not committed" in str(missing())
    git("commit", "-am", "y")
    git("tag", "v1.2.0")
    metadata.replace_header("Version", "1.2.0")
    metadata.set_payload("[there](https://x.y)")
    for name in release_check.URLS:
        metadata["Project-URL"] = f"{name}, https://x.y"
    for name in ("Author", "Summary", "License", "Keywords", "Requires-Python"):
        metadata[name] = "x"
    names[:] = ["x-1.2.0-cp311-cp311-manylinux_2_34_x86_64.whl"]
    assert missing() == []


def test_the_version_is_the_same_everywhere() -> None:
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert declared is not None and declared[1] == seblock_cuda.__version__


def test_pins_are_exact() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r'[a-z0-9-]+==[\w.]+(; python_version (<|>=) "3\.\d+")?', line), (
                line
            )
