"""Fills the compiler's cache on disk with what `benchmarks.op` will ask of torch.compile.

    python -m benchmarks.precompile --dtype bfloat16 --jobs 12

Takes the options of `benchmarks.op`. Compiling costs seconds per row and needs one processor core;
timing needs the GPU for itself. So the cores compile first, side by side.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace

import torch
from tqdm import tqdm

from benchmarks.op import INCOMPLETE, Case, cases_of
from benchmarks.options import Setting, parser, settings
from benchmarks.providers import PROVIDERS, direction_call
from benchmarks.workloads import load, select


def compile_case(case: Case, setting: Setting) -> None:
    """Runs each direction once, in a process of its own."""
    torch.compiler.reset()
    problem = case.problem(setting)
    for direction in setting.directions:
        direction_call(PROVIDERS["compile"], problem, direction)()
    if setting.on_cuda:
        torch.cuda.synchronize()


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 3 if the budget ended before the last case."""
    arguments = parser("benchmarks.precompile", "Compiles what benchmarks.op will time.")
    arguments.add_argument("--network", nargs="+", help="only these networks of the table")
    arguments.add_argument("--rows", nargs="+", type=int, help="only these rows, from 0")
    arguments.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    arguments.add_argument("--no-compile", action="store_true", help="only list the cases")
    options = arguments.parse_args(argv)
    setting = replace(settings(options), directions=["forward", "both"])
    cases = cases_of(options, select(load(), options.network, options.rows))
    if options.no_compile:
        print("\n".join(map(str, cases)))
        return 0
    deadline = time.monotonic() + (options.budget or float("inf"))
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # the processes are parallel enough
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        futures = {pool.submit(compile_case, case, setting): case for case in cases}
        for future in tqdm(as_completed(futures), total=len(cases), unit="case", disable=None):
            if not future.cancelled() and (error := future.exception()):
                tqdm.write(f"not compiled: {futures[future]}: {error}")
            if time.monotonic() > deadline:
                pool.shutdown(wait=False, cancel_futures=True)
    left = sum(future.cancelled() for future in futures)
    print(f"{len(cases) - left} of {len(cases)} cases compiled")
    return INCOMPLETE if left else 0


if __name__ == "__main__":
    sys.exit(main())
