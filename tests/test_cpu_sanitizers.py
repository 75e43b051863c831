"""The CPU kernels under AddressSanitizer: random problems whose tensors have no byte to spare, with
the widest instruction set that this processor has.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from seblock_cuda import _ops

ROOT = Path(__file__).resolve().parent.parent
FLAGS: dict[str, list[str]] = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"],
}


def test_no_byte_beside_a_tensor_is_touched(tmp_path: Path) -> None:
    program = tmp_path / "random_problems"
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    flags = ["-std=c++20", "-g", "-O1", "-fsanitize=address", *FLAGS[_ops.cpu_capability()]]
    sources = ["-Icsrc", "-Icsrc/cpu", "tests/cpu/random_problems.cpp"]
    subprocess.run([*compiler, *flags, *sources, "-o", str(program)], check=True, cwd=ROOT)
    done = subprocess.run([str(program), "2000"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
    assert done.stdout == "2024 problems\n"
