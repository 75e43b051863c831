"""Fills the compiler's cache on disk with what `benchmarks.op` will ask of torch.compile.

    python -m benchmarks.precompile --dtype bfloat16 --jobs 12

Takes the options of `benchmarks.op`. Compiling costs seconds per row and needs one processor core;
timing needs the GPU for itself. So the cores compile first, side by side.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, TimeoutError, as_completed
from dataclasses import replace

import torch
from tqdm import tqdm

from benchmarks.op import INCOMPLETE, UNSERVED, Case, cases_of
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
    """Returns 0, 2 if the options are bad, or 3 if the budget ended before the last case."""
    arguments = parser("benchmarks.precompile", "Compiles what benchmarks.op will time.")
    arguments.add_argument("--network", nargs="+", help="only these networks of the table")
    arguments.add_argument("--rows", nargs="+", type=int, help="only these rows, from 0")
    arguments.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    arguments.add_argument("--no-compile", action="store_true", help="only list the cases")
    options = arguments.parse_args(argv)
    try:
        setting = replace(settings(options), directions=["forward", "both"])
        cases = cases_of(options, select(load(), options.network, options.rows))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNSERVED
    if options.no_compile:
        print("\n".join(map(str, cases)))
        return 0
    finished = compile_all(cases, setting, options.jobs, options.budget)
    print(f"{finished} of {len(cases)} cases compiled")
    return INCOMPLETE if finished < len(cases) else 0


def compile_all(cases: Sequence[Case], setting: Setting, jobs: int, seconds: float | None) -> int:
    """How many were finished in that time; what is not finished then is stopped."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # the processes are parallel enough
    finished = 0
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(compile_case, case, setting): case for case in cases}
        done = as_completed(futures, seconds)
        try:
            for future in tqdm(done, total=len(cases), unit="case", disable=None):
                finished += 1
                if error := future.exception():
                    tqdm.write(f"not compiled: {futures[future]}: {error}")
        except TimeoutError:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
    return finished


if __name__ == "__main__":
    sys.exit(main())
