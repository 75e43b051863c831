"""AddressSanitizer and UndefinedBehaviorSanitizer find nothing in the kernels, and would."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simt import build, mutants, sanitize

SHARED_BYTES = ("kBlockThreads * kVec * sizeof(acc_t)", "kBlockThreads * kVec * sizeof(acc_t) - 4")


@pytest.fixture(scope="module")
def sanitized() -> Path:
    try:
        build.runtime_library("libasan.so")
        return build.build_kernels(sanitize.CHECKS)
    except build.MissingTool as reason:
        pytest.skip(str(reason))


def test_nothing_is_found(sanitized: Path) -> None:
    done = sanitize.run(sanitized)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing found" in done.stdout


@pytest.mark.parametrize(
    ("name", "file", "replacement", "report"),
    [
        (
            "one element beyond x",
            "kernels/squeeze.cuh",
            ("begin : i; j < end; ++j)", "begin : i; j <= end; ++j)"),
            "READ of size 2",
        ),
        ("four bytes of shared memory", "kernels/squeeze.cuh", SHARED_BYTES, "WRITE of size 4"),
    ],
)
def test_an_overrun_is_found(
    sanitized: Path, name: str, file: str, replacement: tuple[str, str], report: str
) -> None:
    mutant = mutants.Mutant(f"sanitized {name}", "forward_split.cu", file, [replacement])
    module = mutants.build_mutant(mutant, sanitized, sanitize.CHECKS)
    shapes = {"one element beyond x": "primes", "four bytes of shared memory": "many samples"}
    done = sanitize.run(module, "--shapes", shapes[name], "--dtypes", "bfloat16")
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr, done.stdout + done.stderr
    assert report in done.stderr
