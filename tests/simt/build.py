"""Builds the SIMT harness: its self-test, and the module that runs the CUDA kernels on a CPU.

    python tests/simt/build.py [--sanitize address,undefined]

Needs a C++17 compiler (`CXX`, else c++) and ninja, no GPU and no nvcc; the module also needs the
headers of a CUDA toolkit, for the types __nv_bfloat16 and __half. Everything lies in
build/simt/<variant>/; what is up to date is not built again.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SIMT = ROOT / "tests" / "simt"
HARNESS = ["tests/simt/simt.cpp"]
SELFTEST = [
    "tests/simt/selftest.cpp",
    "tests/simt/selftest_faults.cpp",
    "tests/simt/selftest_memory.cpp",
    *HARNESS,
]
KERNELS = [
    "tests/simt/module.cpp",
    "csrc/plan.cpp",
    "csrc/cuda/launch.cu",
    "csrc/cuda/drivers/split.cu",
    "csrc/cuda/drivers/stream.cu",
    "csrc/cuda/drivers/resident.cu",
    "csrc/cuda/drivers/gradients.cu",
    *HARNESS,
]
FLAGS = [
    "-std=c++17",
    "-g",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-ffp-contract=off",
]
RULES = """\
rule compile
  command = $cxx $flags -MMD -MF $out.d -x c++ -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = $cxx $flags $in -o $out
"""


class MissingTool(RuntimeError):
    """The machine lacks what the build needs: a reason to skip a test, not to fail it."""


def _site_packages() -> list[Path]:
    return [Path(folder) for folder in (*site.getsitepackages(), site.getusersitepackages())]


def _cuda_candidates() -> Iterator[Path]:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            yield Path(os.environ[name]) / "include"
    for folder in _site_packages():
        yield from sorted(folder.glob("nvidia/cu*/include"), reverse=True)
    nvcc = shutil.which("nvcc")
    if nvcc:
        yield Path(nvcc).resolve().parents[1] / "include"
    yield from sorted(Path("/usr/local").glob("cuda*/include"))


def cuda_include() -> Path:
    """The folder of cuda_bf16.h: from the environment, pip's packages, PATH or /usr/local."""
    for folder in _cuda_candidates():
        if (folder / "cuda_bf16.h").is_file() and (folder / "crt" / "host_defines.h").is_file():
            return folder
    raise MissingTool("no CUDA headers (cuda_bf16.h): set CUDA_HOME or install a CUDA toolkit")


def _compiler() -> str:
    command = os.environ.get("CXX") or "c++"
    if shutil.which(shlex.split(command)[0]) is None:
        raise MissingTool(f"no C++ compiler: {command}")
    return command


def runtime_library(name: str) -> str:
    """The path of a library that comes with the compiler, for LD_PRELOAD."""
    command = [*shlex.split(_compiler()), f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(path):
        raise MissingTool(f"the compiler has no {name}")
    return path


def _ninja() -> str:
    scripts = (str(Path(sys.executable).parent), sysconfig.get_path("scripts"))
    found = shutil.which("ninja", path=os.pathsep.join((*scripts, os.environ.get("PATH", ""))))
    if found is None:
        raise MissingTool("no ninja: pip install ninja")
    return found


def build(
    target: str,
    sources: list[str],
    flags: list[str],
    link: list[str],
    variant: str,
    extra_objects: Iterable[Path] = (),
) -> Path:
    """Compiles and links `target`; ninja decides what is out of date, headers included."""
    folder = ROOT / "build" / "simt" / variant / Path(target).name.split(".")[0]
    lines = [f"cxx = {_compiler()}", RULES]
    objects = [Path(source).name + ".o" for source in sources]
    for source, output in zip(sources, objects):
        lines += [f"build {output}: compile {str(ROOT / source).replace(' ', '$ ')}"]
        lines += [f"  flags = {shlex.join(flags)}"]
    inputs = " ".join([*objects, *(str(path).replace(" ", "$ ") for path in extra_objects)])
    lines += [f"build {target}: link {inputs}", f"  flags = {shlex.join(flags + link)}"]
    ninja = _ninja()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # one build at a time in a folder
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text("\n".join(lines) + "\n")
        command = [ninja, "-C", str(folder), "-j", str(os.cpu_count() or 1)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{target} does not build:\n{done.stdout}{done.stderr}")
    if "warning:" in done.stdout:
        print(done.stdout, file=sys.stderr)
    return folder / target


def _variant(sanitize: str | None) -> tuple[list[str], str]:
    """Compiler flags and folder name for `sanitize`, the argument of -fsanitize."""
    if not sanitize:
        return [*FLAGS, "-O2"], "plain"
    checks = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    return [*FLAGS, "-O0", *checks], sanitize.replace(",", "-")


def build_selftest(sanitize: str | None = None) -> Path:
    """The self-test of the harness, an executable."""
    flags, variant = _variant(sanitize)
    return build("selftest", SELFTEST, flags, [], variant)


def build_kernels(sanitize: str | None = None) -> Path:
    """The Python module `simt_kernels`. Sanitized, it loads only under LD_PRELOAD=libasan.so."""
    flags, variant = _variant(sanitize)
    flags += kernel_flags(ROOT / "csrc/cuda")
    return build(_module_name(), KERNELS, flags, ["-shared"], variant)


def build_variant(
    name: str,
    cuda: Path,
    changed: str | None = None,
    base: Path | None = None,
    sanitize: str | None = None,
) -> Path:
    """The module from the launchers and kernels in the folder `cuda`, barely optimised.

    With `base`, another such module, only the launcher `changed` is compiled; the other objects are
    those of `base`.
    """
    checks = _variant(sanitize)[0] if sanitize else [*FLAGS, "-O1"]
    flags = [*checks, "-g0", *kernel_flags(cuda)]
    sources = [
        str(cuda / source.removeprefix("csrc/cuda/")) if "/cuda/" in source else source
        for source in KERNELS
    ]
    objects: list[Path] = []
    if base is not None:
        objects = [
            base.parent / f"{Path(source).name}.o"
            for source in sources
            if Path(source).name != changed
        ]
        sources = [source for source in sources if Path(source).name == changed]
    return build(_module_name(), sources, flags, ["-shared"], name, objects)


def kernel_flags(cuda: Path) -> list[str]:
    import pybind11

    folders = [cuda, cuda / "device", ROOT / "csrc", SIMT]
    toolkit = cuda_include()
    system = [pybind11.get_include(), sysconfig.get_path("include"), toolkit, toolkit / "cccl"]
    flags = [
        "-DSEBLOCK_SIMT=1",
        "-Wno-unknown-pragmas",
        "-Wno-unused-variable",
        *(f"-I{folder}" for folder in folders),
    ]
    return [*flags, *(word for path in system for word in ("-isystem", str(path)))]


def _module_name() -> str:
    return f"simt_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the SIMT harness.")
    parser.add_argument("--sanitize", metavar="CHECKS", help="for example address,undefined")
    arguments = parser.parse_args()
    print(build_selftest(arguments.sanitize))
    print(build_kernels(arguments.sanitize))
