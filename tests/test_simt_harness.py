"""The SIMT harness tested by itself: what it runs, what it reports and by which name."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from tests.simt import build

Run = Callable[[str], subprocess.CompletedProcess[str]]

# Kernels that are right, and checks that the case makes itself.
SOUND = ["sum", "same-bits", "seeds", "partial-warps", "poison", "pipeline", "recovery"]
SOUND += ["traffic", "bank-conflicts"]

UNORDERED = (
    "kernel: block 1: thread {}: reads 4 bytes at byte {} of y, written by thread {} of block 0: "
    "nothing orders the two"
)

# Kernels that are wrong: the report names kernel, block, thread and where each is.
REPORTS = {
    "exited-thread": "exits: divergence: block 3: from thread 0 at sync_threads; from thread 32 "
    "exited; 0 blocks not started",
    "divergent-barrier": "diverges: divergence: block 0: from thread 0 at sync_threads; from "
    "thread 5 at shuffle_xor; from thread 6 at sync_threads; 0 blocks not started",
    "exited-lane": "exits: divergence: block 0: from thread 0 exited; from thread 32 at "
    "shuffle_xor; from thread 63 exited; 1 blocks not started",
    "stuck": "waits: stuck wait: block 1: from thread 0 at sync_threads; from thread 2 in spin; "
    "from thread 3 at sync_threads; 0 blocks not started",
    "pipeline-alone": "pipeline: stuck wait: block 0: from thread 0 in spin; from thread 1 at "
    "sync_threads; 1 blocks not started",
    "exception": "throws: block 1: thread 17: index 9 of 8",
    "missing-barrier": "ok",
    "misuse": "simt: called outside the body of a launch",
    "read-beyond": "kernel: block 0: thread 63: reads 4 bytes at byte 252 of x, which has 252 "
    "bytes",
    "write-input": "kernel: block 0: thread 0: writes 4 bytes at byte 0 of x, an input",
    "unwritten": "kernel: block 0: thread 40: reads 4 bytes at byte 160 of y, which nobody has "
    "written",
    "misaligned": "kernel: block 0: thread 0: reads 8 bytes at byte 4 of x: misaligned",
    "shared-race": "kernel: block 0: thread 48: reads 4 bytes at byte 0 of shared memory, written "
    "by thread 0 of block 0: nothing orders the two",
    "shared-ordered": "no error",
    "global-race": "kernel: block 0: thread 7: reads 4 bytes at byte 0 of y, written by thread 3 "
    "of block 0: nothing orders the two",
    "overwritten": "kernel: block 0: thread 31: writes 4 bytes at byte 124 of y, read by thread 30 "
    "of block 0: nothing orders the two",
    "overwritten-late": "kernel: block 0: thread 63: writes 4 bytes at byte 124 of y, read by "
    "several threads of block 0: nothing orders the two",
    "handed-over": "no error",
    **dict.fromkeys(
        ("released-early", "not-released", "not-acquired"), UNORDERED.format(0, 252, 63)
    ),
    "read-early": UNORDERED.format(1, 248, 62),
    "shared-beyond": "kernel: block 0: thread 0: writes 4 bytes at byte 64 of shared memory, "
    "which has 64 bytes",
    "shared-unwritten": "kernel: block 0: thread 0: reads 4 bytes at byte 12 of shared memory, "
    "which nobody has written",
}

# What only AddressSanitizer sees, and how it calls it.
OVERRUNS = {
    "past-shared-memory": "heap-buffer-overflow",
    "past-local-array": "stack-buffer-overflow",
    "stack-overflow": "heap-buffer-overflow",
    "stale-shared-memory": "heap-use-after-free",
}


def runner(sanitize: str | None) -> Run:
    try:
        program = build.build_selftest(sanitize)
    except build.MissingTool as missing:
        pytest.skip(str(missing))

    def run(case: str) -> subprocess.CompletedProcess[str]:
        command = [str(program), case]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    return run


@pytest.fixture(scope="module")
def plain() -> Run:
    return runner(None)


@pytest.fixture(scope="module")
def sanitized() -> Run:
    """Under AddressSanitizer, which also reports leaks, and UndefinedBehaviorSanitizer."""
    return runner("address,undefined")


def check(run: Run, case: str, expected: str) -> None:
    done = run(case)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected + "\n", "")


@pytest.mark.parametrize("case", SOUND)
def test_sound_kernel(plain: Run, case: str) -> None:
    check(plain, case, "ok")


@pytest.mark.parametrize("case", REPORTS)
def test_faulty_kernel_is_reported_by_name(plain: Run, case: str) -> None:
    check(plain, case, REPORTS[case])


@pytest.mark.parametrize("case", [*SOUND, *REPORTS])
def test_harness_itself_is_clean(sanitized: Run, case: str) -> None:
    check(sanitized, case, REPORTS.get(case, "ok"))


@pytest.mark.parametrize("case", OVERRUNS)
def test_overrun_is_caught(sanitized: Run, case: str) -> None:
    done = sanitized(case)
    assert done.returncode != 0
    assert f"AddressSanitizer: {OVERRUNS[case]}" in done.stderr, done.stderr


def test_block_with_ten_barriers_takes_well_under_a_millisecond(plain: Run) -> None:
    nanoseconds = float(plain("switch-cost").stdout)
    assert 256 * 10 * nanoseconds < 1e6
