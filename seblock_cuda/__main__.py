"""What was built, what is here, and whether the CUDA kernels can run; and the tuner.

python -m seblock_cuda
python -m seblock_cuda tune --timm seresnet50 --batch 128 --dtype bfloat16 --channels-last
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import os
import platform
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import seblock_cuda
from seblock_cuda import _ops, plan_files
from seblock_cuda.plans import DIRECTIONS, DTYPES, Problem
from seblock_cuda.tuning import collect


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


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m seblock_cuda", description="Without: what is here.")
    tune = parser.add_subparsers(dest="command").add_parser("tune", help="see docs/tune.md")
    what = tune.add_mutually_exclusive_group(required=True)
    what.add_argument("--timm", metavar="MODEL", help="a model of timm, by its name")
    columns = "network,stage,channels,height,width,reduced,batch"
    what.add_argument("--workloads", metavar="FILE", help=f"a CSV table with columns {columns}")
    tune.add_argument("--batch", type=int, help="samples (else 128, or the table's)")
    tune.add_argument("--dtype", choices=DTYPES[:3], default="float32")
    tune.add_argument("--autocast", action="store_true", help="the weights stay float32")
    tune.add_argument("--channels-last", action="store_true")
    tune.add_argument("--inference", action="store_true", help="no backward")
    tune.add_argument("--budget", type=float, metavar="SECONDS")
    tune.add_argument("--plans", metavar="FILE", help="where to keep them; else the user's cache")
    tune.add_argument("--table", metavar="FILE", help="where to write the table too")
    tune.add_argument("--device", default="cuda", help="else the current GPU")
    return parser.parse_args(argv)


def _problems_of_table(options: argparse.Namespace) -> list[Problem]:
    """The layers of a file such as benchmarks/workloads.csv, without a tail."""
    with open(options.workloads, newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Problem(
            n=options.batch or int(row["batch"]),
            c=int(row["channels"]),
            s=int(row["height"]) * int(row["width"]),
            r=int(row["reduced"]),
            dtype=options.dtype,
            weight_dtype="float32" if options.autocast else options.dtype,
            layout="nhwc" if options.channels_last else "nchw",
            tail="none",
            direction=direction,
            aligned=True,
        )
        for row in rows
        for direction in DIRECTIONS[: 1 if options.inference else 2]
    ]


def _problems_of_timm(options: argparse.Namespace) -> list[Problem]:
    timm: Any = importlib.import_module("timm")
    dtype = getattr(torch, options.dtype)
    kept = torch.float32 if options.autocast else dtype
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    model: Any = timm.create_model(options.timm)
    seblock_cuda.convert_se_modules(model)
    device = torch.device(options.device)
    model.to(device, kept, memory_format=layout)
    size = timm.data.resolve_model_data_config(model)["input_size"]
    x = torch.randn(options.batch or 128, *size).to(device, kept).to(memory_format=layout)
    lower = options.autocast and dtype != torch.float32
    with torch.autocast(device.type, dtype) if lower else contextlib.nullcontext():
        return collect(model, x, training=not options.inference)


def _tune(options: argparse.Namespace) -> int:
    try:
        seblock_cuda.tune_op([], device=options.device)  # before a model is made: can it run here?
        problems = _problems_of_timm if options.timm else _problems_of_table
        found = problems(options)
        if options.plans:
            os.environ[plan_files.VARIABLE] = options.plans
        tuned = str(seblock_cuda.tune_op(found, budget=options.budget, device=options.device))
        print(tuned)
        if options.table:
            Path(options.table).write_text(tuned + "\n")
    except (RuntimeError, OSError, ImportError, KeyError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def main(argv: Sequence[str] = ()) -> int:
    """Prints one screen, or tunes; the exit code."""
    options = _options(argv)
    if options.command == "tune":
        return _tune(options)
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
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
