"""Builds the two native parts of the package with ninja; metadata is in pyproject.toml.

libseblock_cuda.so   the operators: LibTorch stable ABI, CPU kernels, with nvcc the CUDA kernels too
_core.<abi>.so       the pybind11 module: plan and build info, no tensors

SEBLOCK_WITH_CUDA    auto (default: CUDA if there is an nvcc; a CUDA build of torch asks for one),
                     1 (CUDA or an error), 0 (CPU only)
SEBLOCK_NVCC         the nvcc to use; else CUDA_HOME, pip's toolkit, PATH, /usr/local/cuda
TORCH_CUDA_ARCH_LIST "8.0;9.0+PTX"; no GPU is asked, so none has to be there
MAX_JOBS             compilers at a time
CXX, CXXFLAGS        the host compiler and flags to add
"""

from __future__ import annotations

import filecmp
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

if [int(number) for number in re.findall(r"\d+", setuptools.__version__)[:2]] < [70, 1]:
    sys.exit(f'error: setuptools is {setuptools.__version__}: pip install "setuptools>=70.1"')

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # an isolated build does not have it

from build_tools import BuildError, available_memory, build_folder, job_count  # noqa: E402
from build_tools.architectures import choose_architectures, gencode_flags  # noqa: E402
from build_tools.ninja_file import NinjaFile, write_if_changed  # noqa: E402
from build_tools.toolkit import Toolkit, choose_toolkit, mismatch  # noqa: E402

# ---------------------------------------------------------------------------------- what is built

PLAN_SOURCES = ["csrc/plan.cpp", "csrc/candidates.cpp"]
OP_SOURCES = ["csrc/ops.cpp", "csrc/tuned.cpp", *PLAN_SOURCES]  # and csrc/cpu, csrc/cuda
CORE_SOURCES = ["csrc/core.cpp", *PLAN_SOURCES]

# Host files with flags of their own: the processor chooses among the instruction sets at run time.
EXTRA_FLAGS = {}
if platform.machine().lower() in ("x86_64", "amd64"):
    avx2 = ["-mavx2", "-mfma", "-mf16c"]
    avx512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
    EXTRA_FLAGS = {
        "csrc/cpu/kernels_avx2.cpp": avx2,
        "csrc/cpu/kernels_avx512.cpp": [*avx512, "-mfma", "-mf16c"],
    }

CXX_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
    "-Xptxas=-v",
    "-fmad=false",  # what is fused is written as such: the same bits in every kernel
]
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # the stable ABI of torch 2.10


@dataclass
class Tools:
    """What the machine has, found once per build."""

    cxx: str
    cxx_version: str
    ninja: str
    torch: Path  # the package folder
    torch_version: str
    torch_cuda: str | None  # the CUDA that torch was built with
    toolkit: Toolkit | None
    architectures: list[str] = field(default_factory=list)


def find_tools() -> Tools:
    if sys.platform != "linux":
        raise BuildError(
            f"the kernels are built on Linux only, this is {sys.platform}; without them the "
            "package runs as plain PyTorch: put its folder on PYTHONPATH"
        )
    if not os.access(ROOT, os.W_OK):
        raise BuildError(
            f"{ROOT} cannot be written, and the build needs its folder build/: copy it"
        )
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    cxx = next((name for name in names if shutil.which(shlex.split(name)[0])), None)
    if cxx is None:
        raise BuildError(f"no C++ compiler: tried {', '.join(names)}; install one or set CXX")
    banner = subprocess.run([*shlex.split(cxx), "--version"], capture_output=True, text=True)

    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        raise BuildError(
            f"no Python.h in {sysconfig.get_path('include')}: install Python's development files "
            "(python3-dev on Debian and Ubuntu, python3-devel on Fedora)"
        )
    for module in ("torch", "pybind11"):
        if importlib.util.find_spec(module) is None:
            raise BuildError(
                f"{module} is needed to build and {sys.executable} does not have it; "
                "install it, or leave out --no-build-isolation"
            )
    ninja_module = importlib.util.find_spec("ninja")
    ninja = shutil.which("ninja") or shutil.which("ninja-build")
    if ninja_module is not None:
        import ninja as ninja_package

        ninja = shutil.which("ninja", path=ninja_package.BIN_DIR) or ninja
    if ninja is None:
        raise BuildError("ninja is needed to build: pip install ninja")

    # torch is located, not imported: importing takes seconds, and nothing here has to run it
    torch = Path(str(importlib.util.find_spec("torch").origin)).parent
    facts = (torch / "version.py").read_text()
    version, cuda, hip = (
        re.search(rf"^{name}\b.*= '([^']+)'", facts, re.M)
        for name in ("__version__", "cuda", "hip")
    )
    torch_version = version[1] if version else "0"
    torch_cuda = cuda[1] if cuda else None
    if [int(number) for number in re.findall(r"\d+", torch_version)[:2]] < [2, 10]:
        raise BuildError(f"torch must be 2.10 or newer, got {torch_version} in {torch}")

    site_packages = dict.fromkeys(
        Path(folder)
        for folder in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), torch.parent)
    )
    if hip:
        print("seblock_cuda: AMD GPUs are not supported: CPU kernels, and plain PyTorch on the GPU")
    toolkit = None if hip else choose_toolkit(os.environ, site_packages, torch_cuda)
    if warning := mismatch(toolkit, torch_cuda):
        print(f"seblock_cuda: {warning}", file=sys.stderr)
    compiler = banner.stdout.splitlines()[0]
    tools = Tools(cxx, compiler, ninja, torch, torch_version, torch_cuda, toolkit)
    if toolkit is not None:
        listing = subprocess.run([toolkit.nvcc, "--list-gpu-arch"], capture_output=True, text=True)
        tools.architectures = choose_architectures(os.environ, listing.stdout.split())
    return tools


# ------------------------------------------------------------------------------------ build.ninja


def write_build_info(tools: Tools, folder: Path) -> None:
    """The header that csrc/build_info.h includes: words for the reader, no paths."""

    def literal(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    flags = ["c++:", *CXX_FLAGS]
    if tools.toolkit:
        flags += ["nvcc:", *NVCC_FLAGS]
    architectures = ", ".join(literal(arch) for arch in tools.architectures)
    cuda_version = tools.toolkit.version if tools.toolkit else ""
    write_if_changed(
        folder / "build_info_generated.h",
        "// Written by setup.py.\n"
        f"#define SEBLOCK_BUILD_CUDA {int(tools.toolkit is not None)}\n"
        f"#define SEBLOCK_BUILD_CUDA_VERSION {literal(cuda_version)}\n"
        f"#define SEBLOCK_BUILD_ARCHITECTURES {architectures}\n"
        f"#define SEBLOCK_BUILD_COMPILER {literal(tools.cxx_version)}\n"
        f"#define SEBLOCK_BUILD_FLAGS {literal(' '.join(flags))}\n"
        f"#define SEBLOCK_BUILD_TORCH_VERSION {literal(tools.torch_version)}\n",
    )


def write_ninja(tools: Tools, folder: Path) -> list[Path]:
    """build.ninja for everything above; returns the files it makes."""
    ninja = NinjaFile(folder, tools.cxx, tools.toolkit.nvcc if tools.toolkit else None)

    def flags_of(source: Path) -> list[str]:
        return EXTRA_FLAGS.get(source.relative_to(ROOT).as_posix(), [])

    def compile_all(sources: list[Path], flags: list[str], suffix: str = "") -> list[str]:
        names = [source.relative_to(ROOT / "csrc").as_posix() + suffix for source in sources]
        return [ninja.compile(source, name, flags) for source, name in zip(sources, names)]

    extra = shlex.split(os.environ.get("CXXFLAGS", ""))
    pybind11 = Path(str(importlib.util.find_spec("pybind11").origin)).parent / "include"
    cxx = [*CXX_FLAGS, f"-I{ROOT / 'csrc'}", f"-I{folder}"]
    # messages name files without where they lay on the machine that built them
    for above in (Path(sysconfig.get_path("include")), pybind11, tools.torch, ROOT):
        cxx.append(f"-ffile-prefix-map={above}/=")

    # the op library
    torch = [TORCH_TARGET]
    for include in ("include", "include/torch/csrc/api/include"):
        torch += ["-isystem", str(tools.torch / include)]
    strip = "-Wl,--strip-all"
    link = [f"-L{tools.torch / 'lib'}", "-ltorch_cpu", "-Wl,--as-needed", "-Wl,--exclude-libs,ALL"]
    link.append(strip)
    cuda = tools.toolkit
    if cuda:
        torch += ["-DSEBLOCK_WITH_CUDA=1", "-isystem", str(cuda.include)]
        link += [f"-L{cuda.library}", "-lcudart_static", "-ldl", "-lpthread", "-lrt"]
    objects = compile_all([ROOT / source for source in OP_SOURCES], [*cxx, *torch, *extra])
    # those with extra flags come last: where two objects carry the same inline function the linker
    # keeps the first one, which has to run everywhere
    for source in sorted((ROOT / "csrc/cpu").glob("*.cpp"), key=lambda s: (flags_of(s) != [], s)):
        objects += compile_all([source], [*cxx, *extra, *flags_of(source)])
    if cuda:
        nvcc = [*NVCC_FLAGS, *gencode_flags(tools.architectures)]
        if int(cuda.version.split(".")[0]) >= 13:  # which every driver that serves it can read
            nvcc.append("--compress-mode=size")
        nvcc += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/cuda'}"]
        if os.environ.get("CXX") and len(shlex.split(tools.cxx)) == 1:
            nvcc.append(f"-ccbin={tools.cxx}")
        objects += compile_all(sorted((ROOT / "csrc/cuda").rglob("*.cu")), nvcc)
    library = ninja.link("libseblock_cuda.so", objects, link)

    # the pybind11 module
    core = [*cxx, "-isystem", sysconfig.get_path("include"), "-isystem", str(pybind11), *extra]
    objects = compile_all([ROOT / source for source in CORE_SOURCES], core, ".core")
    module = ninja.link(f"_core{sysconfig.get_config_var('EXT_SUFFIX')}", objects, [strip])
    ninja.write()
    return [library, module]


# -------------------------------------------------------------------------------------- the build


def build(tools: Tools) -> list[Path]:
    folder = build_folder(ROOT)
    folder.mkdir(parents=True, exist_ok=True)
    write_build_info(tools, folder)
    outputs = write_ninja(tools, folder)
    processors = len(os.sched_getaffinity(0))
    jobs = job_count(os.environ, processors, available_memory())
    if tools.toolkit:
        targets = " ".join(tools.architectures)
        target = f"CUDA {tools.toolkit.version} ({tools.toolkit.nvcc}) for {targets}"
    elif os.environ.get("SEBLOCK_WITH_CUDA") == "0":
        target = "CPU only (SEBLOCK_WITH_CUDA=0)"
    else:
        target = "CPU only: no usable nvcc (SEBLOCK_WITH_CUDA=1 says where it was looked for)"
    print(f"seblock_cuda: {target}, torch {tools.torch_version}, {jobs} jobs", flush=True)
    environ = dict(os.environ)
    cuda_sources = len(list((ROOT / "csrc/cuda").rglob("*.cu")))
    if tools.toolkit and jobs >= 2 * cuda_sources > 0:
        # more processors than files: each nvcc compiles several architectures at a time
        environ.setdefault("NVCC_APPEND_FLAGS", f"--threads={jobs // cuda_sources}")
    ninja = [tools.ninja, "-C", str(folder)]
    # what a removed source, or an earlier build with CUDA, has left
    subprocess.run([*ninja, "-t", "cleandead"], stdout=subprocess.DEVNULL, check=False)
    if subprocess.run([*ninja, "-j", str(jobs)], env=environ).returncode:
        raise BuildError("the build failed; the compiler's message is above")
    return outputs


class NinjaBuild(build_ext):
    """build_ext that runs ninja and puts the results into the source tree or the wheel."""

    def _target(self) -> Path:
        in_place = self.inplace or getattr(self, "editable_mode", False)
        return (ROOT if in_place else Path(self.build_lib)) / "seblock_cuda"

    def run(self) -> None:
        try:
            outputs = build(find_tools())
        except BuildError as error:
            sys.exit(f"error: {error}")
        target = self._target()
        target.mkdir(parents=True, exist_ok=True)
        for output in outputs:
            if not ((target / output.name).exists() and filecmp.cmp(output, target / output.name)):
                # a new file in the old one's place: a running process keeps the one it has loaded
                shutil.copy2(output, target / f".{output.name}")
                os.replace(target / f".{output.name}", target / output.name)

    def get_outputs(self) -> list[str]:
        core = f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
        return [str(self._target() / name) for name in ("libseblock_cuda.so", core)]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class CleanBuild(build_py):
    """build_py that takes no module along which an earlier build has left and the sources lack."""

    def run(self) -> None:
        if not getattr(self, "editable_mode", False):
            shutil.rmtree(Path(self.build_lib) / "seblock_cuda", ignore_errors=True)
        super().run()


setup(
    license="MIT",
    ext_modules=[
        Extension("seblock_cuda._core", sources=[])
    ],  # marks the wheel as one of this platform
    cmdclass={"build_ext": NinjaBuild, "build_py": CleanBuild},
)
