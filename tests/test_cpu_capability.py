"""The CPU kernels are right with every instruction set that this processor has, the widest switched
off too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from seblock_cuda import _ops

WIDTHS = ["baseline", "avx2", "avx512"]
ROOT = Path(__file__).resolve().parent.parent


def run(capability: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SEBLOCK_CPU_CAPABILITY": capability}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize("capability", WIDTHS)
def test_narrower_instruction_sets(capability: str) -> None:
    if WIDTHS.index(capability) >= WIDTHS.index(_ops.cpu_capability()):
        pytest.skip(f"the other tests run {_ops.cpu_capability()} already")
    asked = run(capability, "-c", "from seblock_cuda import _ops; print(_ops.cpu_capability())")
    assert asked.stdout.strip() == capability
    done = run(
        capability,
        *("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not gpu"),
        *("-k", "not workloads", "tests/test_op.py", "tests/test_nonfinite.py"),
        "tests/test_residual.py",
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_an_unknown_name_changes_nothing() -> None:
    asked = run("sse9", "-c", "from seblock_cuda import _ops; print(_ops.cpu_capability())")
    assert asked.stdout.strip() == _ops.cpu_capability()
