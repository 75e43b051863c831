"""Which CUDA toolkit builds the library."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from build_tools import BuildError


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit that can build the library."""

    nvcc: Path
    include: Path
    library: Path  # the folder of libcudart_static.a
    version: str  # "13.0"


def _output_of(*command: str | Path) -> str:
    try:
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _toolkit_root(nvcc: Path) -> Path:
    """The toolkit folder, also where `nvcc` is a link or a script that starts another nvcc."""
    resolved = nvcc.resolve()
    if (resolved.parent.parent / "include" / "cuda_runtime.h").exists():
        return resolved.parent.parent
    top = re.search(
        r"^#\$ TOP=(.+)$", _output_of(nvcc, "-dryrun", "-E", "-x", "cu", os.devnull), re.M
    )
    return Path(top[1].strip()).resolve() if top else resolved.parent.parent


def _inspect(nvcc: Path) -> Toolkit | str:
    """The toolkit around `nvcc`, or what is wrong with it."""
    if not nvcc.is_file():
        return "not there"
    root = _toolkit_root(nvcc)
    targets = sorted((root / "targets").glob(f"{platform.machine().replace('aarch64', 'sbsa')}-*"))
    includes = [root / "include", *(target / "include" for target in targets)]
    libraries = [root / "lib64", root / "lib", *(target / "lib" for target in targets)]
    include = next((i for i in includes if (i / "cuda_runtime.h").exists()), None)
    library = next((i for i in libraries if (i / "libcudart_static.a").exists()), None)
    if include is None:
        return f"no cuda_runtime.h in {root}/include"
    if library is None:
        return f"no libcudart_static.a in {root}/lib64 or {root}/lib"
    version = re.search(r"release (\d+\.\d+)", _output_of(nvcc, "--version"))
    if version is None:
        return "does not run"
    return Toolkit(nvcc, include, library, version[1])


def find_nvcc(
    environ: Mapping[str, str],
    site_packages: Iterable[Path],
    system: Path = Path("/usr/local/cuda"),
) -> tuple[Toolkit | None, list[str]]:
    """The first usable toolkit and the places that were tried before it, each with the reason.

    Order: `SEBLOCK_NVCC`, `CUDA_HOME`, `CUDA_PATH`, pip's toolkit, `PATH`, `/usr/local/cuda`.
    """
    candidates: list[tuple[str, Path]] = []
    if environ.get("SEBLOCK_NVCC"):
        candidates.append(("SEBLOCK_NVCC", Path(environ["SEBLOCK_NVCC"])))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if environ.get(name):
            candidates.append((name, Path(environ[name]) / "bin" / "nvcc"))
    for folder in site_packages:
        found = sorted(folder.glob("nvidia/cu*/bin/nvcc"), reverse=True)
        candidates += [("pip", nvcc) for nvcc in found or [folder / "nvidia/cu*/bin/nvcc"]]
    on_path = shutil.which("nvcc", path=environ.get("PATH", ""))
    candidates.append(("PATH", Path(on_path or "nvcc")))
    candidates.append(("system", system / "bin" / "nvcc"))

    tried: list[str] = []
    for origin, nvcc in candidates:
        result = _inspect(nvcc)
        if isinstance(result, Toolkit):
            return result, tried
        tried.append(f"{origin}: {nvcc}: {result}")
        if origin == "SEBLOCK_NVCC":
            raise BuildError(f"SEBLOCK_NVCC={nvcc} cannot be used: {result}")
    return None, tried


def choose_toolkit(
    environ: Mapping[str, str], site_packages: Iterable[Path], torch_cuda: str | None = None
) -> Toolkit | None:
    """The toolkit to build with by `SEBLOCK_WITH_CUDA` = auto | 1 | 0, or None for a CPU build.

    `torch_cuda`: the CUDA that torch was built with, "13.0"; None: a CPU build. With a CUDA build
    of torch nobody wants a library without CUDA kernels, unless they say so.
    """
    wanted = environ.get("SEBLOCK_WITH_CUDA", "auto").strip().lower() or "auto"
    if wanted not in ("auto", "1", "0"):
        raise BuildError(f"SEBLOCK_WITH_CUDA must be auto, 1 or 0, got {wanted!r}")
    if wanted == "0":
        return None
    toolkit, tried = find_nvcc(environ, site_packages)
    if toolkit is None and (wanted == "1" or torch_cuda):
        why = "SEBLOCK_WITH_CUDA=1" if wanted == "1" else f"torch is a build for CUDA {torch_cuda}"
        version = f"=={torch_cuda}.*" if torch_cuda else ""
        places = "\n".join(f"  {place}" for place in tried)
        raise BuildError(
            f"{why}, but there is no usable nvcc. Two ways on:\n"
            f'  pip install "cuda-toolkit[nvcc,cccl]{version}"   # or set CUDA_HOME\n'
            "  SEBLOCK_WITH_CUDA=0 pip install ...   # CPU kernels only\n"
            f"Tried, in this order:\n{places}"
        )
    return toolkit


def mismatch(toolkit: Toolkit | None, torch_cuda: str | None) -> str | None:
    """What to say where the toolkit is of another CUDA than torch's."""
    if toolkit is None or torch_cuda is None:
        return None
    if toolkit.version.split(".")[0] == torch_cuda.split(".")[0]:
        return None
    return (
        f"nvcc is of CUDA {toolkit.version}, torch of CUDA {torch_cuda}: a driver that is new "
        f"enough for one may be too old for the other; set SEBLOCK_NVCC or CUDA_HOME to a toolkit "
        f"of CUDA {torch_cuda.split('.')[0]}"
    )
