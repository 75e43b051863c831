"""Runs a command with two pretend GPUs.

    python -m tests.standin.run python -m seblock_cuda
    python -m tests.standin.run python -m pytest -p tests.standin.via_cpu -m gpu tests/test_op.py

It runs in a copy of the checkout, build/standin/tree, whose files are links to those here. Of the
kernels only this package's run; with tests.standin.via_cpu also torch's own, on the CPU. Variables
STANDIN_... change the devices: `DEVICES` in tests/standin/build.py.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.standin import build


def main(command: list[str]) -> int:
    if not command:
        sys.exit(__doc__)
    root = build.tree()
    given = {name: value for name, value in os.environ.items() if name.startswith("STANDIN_")}
    environment = build.environment(root, **given)
    if command[0] == "python":
        command = [sys.executable, *command[1:]]
    return subprocess.run(command, cwd=root, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
