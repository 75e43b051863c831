"""The options that the benchmarks of the op share, and what they come to."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.problems import DTYPES, LAYOUTS
from benchmarks.providers import DIRECTIONS, GRAPHS, PROVIDERS
from seblock_cuda._ops import cuda_unusable_reason

CPU_MAX_MB = 64.0
QUICK_MAX_MB = 2.0


@dataclass(frozen=True)
class Setting:
    """How to measure, and what of every case."""

    device: torch.device
    threads: int
    seconds: float
    max_mb: float | None
    directions: Sequence[str]
    providers: Sequence[str]
    caches: Sequence[str]

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"


def parser(program: str, about: str) -> argparse.ArgumentParser:
    """The options that all benchmarks of the op have."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=about)
    add = parser.add_argument
    add("--dtype", nargs="+", choices=DTYPES, default=["float32"])
    add("--layout", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="of x in memory")
    add(
        "--direction",
        nargs="+",
        choices=DIRECTIONS,
        default=list(DIRECTIONS),
        help="forward (inference), backward alone, both together; default: each",
    )
    add("--residual", nargs="+", type=int, choices=(0, 1), default=[0], help="1: add and ReLU too")
    add("--providers", nargs="+", choices=[*PROVIDERS, "copy"], help="default: all that are quick")
    add("--cache", nargs="+", choices=["cold", "hot"], help="CUDA; default cold")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--threads", type=int, default=torch.get_num_threads(), help="on the CPU")
    add("--seconds", type=float, help="time for each measurement; default 0.3")
    add("--max-mb", type=float, help=f"scale the batch so that x fits; default {CPU_MAX_MB} on CPU")
    add("--quick", action="store_true", help="small batches, short measurements")
    add("--budget", type=float, help="start nothing new after so many seconds")
    add("--results", type=Path, default=Path("out/results"), help="the folder to write")
    return parser


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where the kernels can run; where there is a GPU and they cannot, it says why.

    Raises:
        ValueError: CUDA was asked for and cannot be used; the message says why.
    """
    reason = cuda_unusable_reason()
    if name == "cuda" and reason:
        raise ValueError(f"--device cuda: {reason}")
    if name == "auto" and reason and torch.cuda.is_available():
        print(f"measured on the CPU: {reason}", file=sys.stderr)
    return torch.device("cpu" if name == "cpu" or reason else "cuda")


def settings(options: argparse.Namespace) -> Setting:
    device = choose_device(options.device)
    on_cpu = device.type == "cpu"
    max_mb = options.max_mb
    if max_mb is None and options.quick:
        max_mb = QUICK_MAX_MB
    elif max_mb is None and on_cpu:
        max_mb = CPU_MAX_MB
    quick = ["fused", "fused_graph", "plain", *([] if on_cpu else ["compile"]), "copy"]
    chosen = options.providers or quick
    return Setting(
        device,
        options.threads,
        options.seconds or (0.02 if options.quick else 0.3),
        max_mb,
        options.direction,
        [name for name in chosen if not (on_cpu and name in GRAPHS)],
        ["hot"] if on_cpu else options.cache or ["cold"],
    )
