"""`python -m seblock_cuda`: what was built, what is here, and whether the CUDA kernels can run."""

from __future__ import annotations

import platform
import textwrap
from typing import Any

import torch

import seblock_cuda
from seblock_cuda import _ops


def _section(title: str, rows: dict[str, str]) -> str:
    lines = [title]
    for name, text in rows.items():
        lines += textwrap.wrap(
            text,
            width=100,
            initial_indent=f"  {name:14}",
            subsequent_indent=" " * 16,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _build_info() -> dict[str, Any]:
    try:
        from seblock_cuda import _core
    except ImportError:
        return {}
    return dict(_core.build_info())


def _versions() -> dict[str, str]:
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
    return {
        "seblock_cuda": seblock_cuda.__version__,
        "torch": f"{torch.__version__} ({cuda})",
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    }


def _build(info: dict[str, Any]) -> dict[str, str]:
    rows = {"library": str(_ops.LIBRARY)}
    if _ops.load_error:
        rows["not loaded"] = _ops.load_error
    if info:
        toolkit = f"toolkit {info['cuda_version']}, for {' '.join(info['architectures'])}"
        rows["CUDA kernels"] = toolkit if info["cuda"] else "none, built without CUDA"
        rows["compiler"] = info["compiler"]
        rows["flags"] = info["flags"]
        rows["against torch"] = f"{info['torch_version']}, loads in 2.10 and newer"
    return rows


def _cpu() -> dict[str, str]:
    rows = {"threads": str(torch.get_num_threads())}
    if _ops.load_error is None:
        rows["kernels"] = f"{_ops.cpu_capability()} (the variable SEBLOCK_CPU_CAPABILITY lowers it)"
    return rows


def _devices() -> dict[str, str]:
    rows = {}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        reason = _ops.cuda_unusable_reason(index)
        rows[f"cuda:{index}"] = (
            f"{properties.name}, capability {properties.major}.{properties.minor}, "
            f"{properties.total_memory / 2**30:.0f} GiB: "
            + ("the CUDA kernels run here" if reason is None else f"cannot be used. {reason}")
        )
    return rows or {"none": "PyTorch sees no CUDA device"}


def main() -> None:
    """Prints one screen."""
    reason = _ops.cuda_unusable_reason()
    print(_section("Versions", _versions()))
    print(_section("Build", _build(_build_info())))
    print(_section("CPU", _cpu()))
    print(_section("GPU", _devices()))
    print(
        _section(
            "CUDA kernels", {"can run here": "yes"} if reason is None else {"cannot run": reason}
        )
    )
    if _ops.load_error:
        remedy = "pip install --no-build-isolation --force-reinstall --no-deps . (in the checkout)"
        print(_section("What to do", {"build again": remedy}))


if __name__ == "__main__":
    main()
