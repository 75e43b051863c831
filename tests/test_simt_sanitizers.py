"""AddressSanitizer and UndefinedBehaviorSanitizer find nothing in the kernels, and would."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simt import build, mutants, sanitize

SHARED_BYTES = (
    "constexpr int kSqueezeShared = 2 * kStagedBytes;",
    "constexpr int kSqueezeShared = kStagedBytes / 8;",
)


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
            "device/vec.cuh",
            (
                "if (e >= place.valid) continue;\n      before_load",
                "if (e > place.valid) continue;\n      before_load",
            ),
            "READ of size 2",
        ),
        ("too little shared memory", "kernels/squeeze.cuh", SHARED_BYTES, "of size "),
    ],
)
def test_an_overrun_is_found(
    sanitized: Path, name: str, file: str, replacement: tuple[str, str], report: str
) -> None:
    mutant = mutants.Mutant(f"sanitized {name}", "split.cu", file, [replacement])
    module = mutants.build_mutant(mutant, sanitized, sanitize.CHECKS)
    done = sanitize.run(module, "--shapes", "primes", "--dtypes", "bfloat16")
    assert done.returncode != 0
    assert "AddressSanitizer: heap-" in done.stderr, done.stdout + done.stderr
    assert report in done.stderr
