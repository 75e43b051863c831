"""Runs the CUDA kernels on the SIMT harness under AddressSanitizer and UndefinedBehaviorSanitizer.

    python -m tests.simt.sanitize

Odd shapes, both layouts, every dtype, aligned and misaligned tensors. torch's allocations are exact
to the byte, and so is the shared memory of every block: one byte too many ends the run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.simt import build

CHECKS = "address,undefined"
RESIDUAL = ["7x7", "primes", "3-D"]  # of the shapes, those that run with a residual
SHAPES = ["7x7", "1x1", "primes", "one", "empty", "many samples", "wide", "3-D", "long plane"]


def run(module: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """This program on a sanitized `module`, in a process that has the sanitizers from its start."""
    preload = " ".join(build.runtime_library(name) for name in ("libasan.so", "libstdc++.so"))
    environment = {
        **os.environ,
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps what it has allocated
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.simt.sanitize", "--module", str(module), *arguments]
    return subprocess.run(
        command, env=environment, cwd=build.ROOT, capture_output=True, text=True, check=False
    )


def check(path: Path, shapes: list[str], dtypes: list[str]) -> None:
    """In the process with the sanitizers: the kernels run, and their values are right."""
    import torch

    from tests import cases
    from tests.simt import kernels

    module = kernels.load(path)
    runs = 0
    for name in shapes:
        for layout in cases.LAYOUTS:
            for dtype in (getattr(torch, text) for text in dtypes):
                problem = cases.make_problem(
                    cases.SHAPES[name],
                    dtype,
                    layout,
                    weight_dtype=torch.float32,
                    bias=True,
                    tail="add_relu" if name in RESIDUAL else None,
                )
                if name == "3-D":  # starts one element into its storage
                    moved = torch.empty(problem.x.numel() + 1, dtype=dtype)[1:]
                    x = problem.x
                    problem.x = moved.as_strided(x.shape, x.stride(), 1).copy_(x)
                for strategy in kernels.STRATEGIES:
                    try:
                        out = kernels.run(module, problem, strategy=strategy)
                    except ValueError:  # the strategy cannot run the problem
                        continue
                    cases.check_no_worse_than_plain(cases.named(out.y, out.gradients), problem)
                    runs += 1
    print(f"{runs} runs, forward and backward, under {CHECKS}: nothing found")


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the kernels under sanitizers.")
    parser.add_argument("--module", type=Path, help="in the sanitized process: what to load")
    parser.add_argument("--shapes", nargs="*", default=SHAPES)
    parser.add_argument(
        "--dtypes", nargs="*", default=["float32", "bfloat16", "float16", "float64"]
    )
    arguments = parser.parse_args()
    if arguments.module:
        check(arguments.module, arguments.shapes, arguments.dtypes)
        return
    done = run(build.build_kernels(CHECKS))
    print(done.stdout + done.stderr, end="")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
