"""Builds the stand-in and a copy of the checkout whose op library is linked with it.

The op library that ships holds the CUDA runtime (static), so nothing can be preloaded under it: its
own objects, as setup.py has made them, are linked again, with the stand-in in the runtime's place.
The kernels are those of the SIMT harness. Everything lies in build/simt/standin and
build/standin; what is up to date is not made again.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch

from build_tools import build_folder
from tests.simt import build as simt
from tests.simt.build import ROOT, MissingTool

RUNTIME = ROOT / "tests" / "standin" / "runtime"
FOLDER = ROOT / "build" / "standin"
SOURCES = ["memory", "streams", "graphs", "launches", "devices", "refused"]
MAJOR = "13"  # of the CUDA runtime: another one has other functions
KERNEL = re.compile(r" [tTW] (_ZN7seblock4cuda\w+_kernelI\w+)$", re.M)
# Two devices unlike each other: what is asked of one must not be taken for the other.
DEVICES = {
    "STANDIN_MEGABYTES": "256",
    "STANDIN_MULTIPROCESSORS": "4,6",
    "STANDIN_SHARED_KB": "227,163",
    "STANDIN_L2_MEGABYTES": "50,1",
}


def _product() -> tuple[Path, str]:
    """setup.py's build folder and its build.ninja, if that was a build with CUDA."""
    folder = build_folder(ROOT)
    if (torch.version.cuda or "none").split(".")[0] != MAJOR:
        raise MissingTool(
            f"the stand-in serves a torch for CUDA {MAJOR}, this one is for {torch.version.cuda}"
        )
    text = (folder / "build.ninja").read_text() if (folder / "build.ninja").exists() else ""
    if "-lcudart_static" not in text:
        raise MissingTool(f"no build with CUDA in {folder}: make build, with an nvcc")
    return folder, text


def _library(name: str, sources: list[str], script: str) -> Path:
    """One of the libraries that stand in for CUDA's own, with its soname."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    exported = FOLDER / f"{name}.map"
    exported.write_text(script)
    flags = [*simt.FLAGS, "-O1", f"-I{RUNTIME}", "-isystem", str(simt.cuda_include())]
    flags.remove("-fvisibility=hidden")
    link = ["-shared", f"-Wl,-soname,{name}", f"-Wl,--version-script={exported}", "-ldl"]
    paths = [f"tests/standin/runtime/{source}.cpp" for source in sources]
    return simt.build(name, paths, flags, link, "standin")


def runtime() -> Path:
    """The stand-in for libcudart.so, with the version that torch's libraries ask for."""
    name = f"libcudart.so.{MAJOR}"
    return _library(name, SOURCES, f"{name} {{ global: cuda*; __cuda*; standin_*; local: *; }};\n")


def driver() -> Path:
    """The stand-in for libcuda.so."""
    return _library("libcuda.so.1", ["driver"], "{ global: cu*; local: *; };\n")


def _output(command: list[str | Path], text: str | None = None) -> str:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def _parameter_start(name: str) -> int:
    """Where the parameter list of a demangled function begins: outside of all <>."""
    depth = 0
    for index, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            return index
    raise ValueError(name)


def _table(objects: Path) -> str:
    """A C++ table of all kernels: those whose host stubs nvcc's objects hold."""
    found = KERNEL.findall(_output(["nm", *sorted(objects.glob("cuda_*.cu.o"))]))
    # nvcc makes the stubs local; the kernel's own name says nothing of it
    symbols = sorted({symbol.replace("4cudaL", "4cuda", 1) for symbol in found})
    lines, entries = [], []
    for text, symbol in zip(_output(["c++filt"], "\n".join(symbols)).splitlines(), symbols):
        start = _parameter_start(text)
        kernel, params = text[text.index("seblock::cuda::") : start], text[start + 1 : -1]
        lines.append(f"extern template {text};")
        entries.append(f'    entry<{params}, {kernel}>("{symbol}"),')
    cuda = ROOT / "csrc" / "cuda"
    headers = [*sorted(cuda.glob("kernels/*.cuh")), *sorted(cuda.glob("drivers/*.cuh"))]
    return "\n".join(
        [
            *(f'#include "{header.relative_to(cuda)}"' for header in headers),
            '#include "table.h"',
            *lines,
            "const Entry kEntries[] = {",
            *entries,
            "};",
            "const size_t kCount = sizeof kEntries / sizeof *kEntries;",
            "",
        ]
    )


def kernels() -> Path:
    """The kernels' own source for the SIMT harness, in a library that finds them by name."""
    harness = simt.build_kernels().parent
    table = FOLDER / "table.cpp"
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = _table(_product()[0] / "objects")
    if not table.exists() or table.read_text() != text:
        table.write_text(text)
    objects = [path for path in sorted(harness.glob("*.o")) if path.name != "module.cpp.o"]
    flags = [*simt.FLAGS, "-O1", *simt.kernel_flags(ROOT / "csrc/cuda"), f"-I{RUNTIME}"]
    link = ["-shared", "-Wl,--no-undefined"]
    return simt.build("libkernels.so", [str(table)], flags, link, "standin", objects)


def tree(name: str = "tree", replaced: Mapping[str, Path] | None = None) -> Path:
    """A copy of the checkout, of links, but for the op library.

    `replaced`: objects to link in the place of the product's, by name: mutants.
    """
    folder, text = _product()
    found = re.search(r"^build libseblock_cuda.so: link (.*)$", text, re.M)
    assert found, "setup.py's build.ninja has another form"
    objects = [folder / part for part in found[1].split()]
    objects = [(replaced or {}).get(path.name, path) for path in objects]
    libraries = [Path(torch.__file__).parent / "lib" / "libtorch_cpu.so", runtime()]
    flags = ["-shared", "-Wl,--exclude-libs,ALL", "-Wl,--no-as-needed"]
    variant = f"standin/{name}"
    library = simt.build("libseblock_cuda.so", [], flags, [], variant, [*objects, *libraries])
    root = FOLDER / name
    package = root / "seblock_cuda"
    package.mkdir(parents=True, exist_ok=True)
    links = {root / path.name: path for path in ROOT.iterdir() if _belongs(path)}
    links |= {
        package / path.name: path
        for path in (ROOT / "seblock_cuda").iterdir()
        if path.name != "__pycache__"
    }
    links[package / library.name] = library
    for link, target in links.items():
        if not (link.is_symlink() and link.readlink() == target):
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    return root


def _belongs(path: Path) -> bool:
    return path.name not in ("seblock_cuda", "build", "dist") and not path.name.startswith(".")


def environment(root: Path | None = None, **settings: str) -> dict[str, str]:
    """The environment in which a process has the stand-in; it must run in the folder `root`.

    `settings` are variables of the environment.
    """
    root = root or tree()
    preload = f"{runtime()} {driver()}"
    return {
        **os.environ,
        "LD_PRELOAD": preload,
        "STANDIN_KERNELS": str(kernels()),
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",  # the tree is of links
        **DEVICES,
        **settings,
    }


def compile_command(name: str) -> list[str]:
    """The command, but for input and output, by which setup.py compiles the object `name`."""
    text = _product()[1]
    edge = rf"^build objects/{re.escape(name)}\b[^:]*: (\w+) .*\n  flags = (.*)$"
    found = re.search(edge, text, re.M)
    compiler = re.search(rf"^{found[1]} = (.*)$", text, re.M) if found else None
    assert found and compiler, f"setup.py's build.ninja does not make {name}"
    return shlex.split(f"{compiler[1]} {found[2]}".replace("$$", "$"))
