"""Times the layer along N, C and S: where the cost per byte is flat, and the floor below it.

    python -m benchmarks.scaling --dtype bfloat16

Three sweeps through 64 x 256 x 28 x 28, everything else held. Leaves `scaling.csv`, with the
columns of `op.csv` and the sweep (sweep_n, sweep_c, sweep_s) as network.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.op import run
from benchmarks.options import parser, settings
from benchmarks.workloads import Workload

N, C, SIDE = 64, 256, 28
SWEEPS = {
    "sweep_n": [1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
    "sweep_c": [16, 32, 64, 128, 256, 512, 1024, 2048],
    "sweep_s": [1, 4, 7, 14, 28, 56, 112],  # the side: S is its square
}


def workloads(sweeps: Sequence[str]) -> list[Workload]:
    """A workload per point; its stage is the value that is swept."""
    rows = []
    for sweep in sweeps:
        for value in SWEEPS[sweep]:
            n = value if sweep == "sweep_n" else N
            c = value if sweep == "sweep_c" else C
            side = value if sweep == "sweep_s" else SIDE
            reduced = max(1, c // 16)
            rows.append(Workload(sweep, value, c, side, side, reduced, "relu", "sigmoid", True, n))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes as `benchmarks.op`."""
    arguments = parser("benchmarks.scaling", "Times the layer along N, C and S.")
    arguments.add_argument("--sweep", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    arguments.set_defaults(layout=["nchw"], direction=["both"])
    options = arguments.parse_args(argv)
    try:
        setting = settings(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run(options, setting, workloads(options.sweep), "scaling")


if __name__ == "__main__":
    sys.exit(main())
