"""The timing method, on the CPU and on CUDA.

CPU: `torch.utils.benchmark.Timer` at a stated thread count. The providers take turns, several short
rounds each, so that a slow spell of the machine falls on all of them; the median, p20 and p80 are
over the blocks of all rounds (a block is as many calls as make the clock's cost negligible). Every
call works on the same tensors: what fits in the processor's caches stays there ("hot"), for every
provider alike. Freed memory stays with the process (`keep_freed_memory`): glibc hands large blocks
back to the system or not depending on what was allocated before, and page faults then decide the
result, at the expense of whoever makes more temporaries.

CUDA: events around every call after a warm-up, providers in turns. Calls rotate through enough sets
of inputs that none of them is still in the L2 cache ("cold"). The host's time per call is measured
apart, by queueing calls without waiting. Where the host is slower than the kernels, the events
contain the gaps between launches: that is what eager code pays.
"""

from __future__ import annotations

import ctypes
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.benchmark import Timer

Call = Callable[[], object]

ROUNDS = 5  # turns that every provider takes
WARM_UP = 3  # calls on every set of inputs, CUDA
HOST_CALLS = 20  # calls queued to measure the host's time, CUDA: few enough to fit in the queue


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call; on CUDA also the host's microseconds and the peak of extra memory."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    host_us: float | None = None
    peak_bytes: int | None = None

    @classmethod
    def of(
        cls, samples_ms: Sequence[float], host_us: float | None = None, peak: int | None = None
    ) -> Timing:
        p20, median, p80 = np.percentile(np.asarray(samples_ms), (20, 50, 80))
        return cls(float(median), float(p20), float(p80), host_us, peak)


def keep_freed_memory() -> bool:
    """Makes malloc keep what is freed, so that timed calls have no page faults; False if it cannot.

    It can with glibc. For the whole process, for good.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


def time_cpu(calls: Mapping[str, Call], *, threads: int, seconds: float) -> dict[str, Timing]:
    """Times every call for at least `seconds`, in turns."""
    timers = {
        name: Timer("call()", globals={"call": call}, num_threads=threads)
        for name, call in calls.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, timer in timers.items():
            measured = timer.blocked_autorange(min_run_time=seconds / ROUNDS)
            samples[name] += [1e3 * second for second in measured.times]
    return {name: Timing.of(values) for name, values in samples.items()}


def time_cuda(calls: Mapping[str, Sequence[Call]], *, seconds: float) -> dict[str, Timing]:
    """Times, in turns, providers given as one call per set of inputs (see `cold_sets`)."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    host_us, peaks = {}, {}
    for name, rotation in calls.items():
        for _ in range(WARM_UP):
            for call in rotation:
                call()
        peaks[name] = _peak_bytes(rotation[0])
        host_us[name] = _host_us(rotation)
    for _ in range(ROUNDS):
        for name, rotation in calls.items():
            deadline = time.perf_counter() + seconds / ROUNDS
            while True:
                samples[name] += _event_times_ms(rotation)
                if time.perf_counter() > deadline:
                    break
    return {name: Timing.of(samples[name], host_us[name], peaks[name]) for name in calls}


def cold_sets(bytes_per_call: int) -> int:
    """How many sets of inputs to rotate through so that the L2 cache has lost a set at its turn."""
    l2_bytes: int = torch.cuda.get_device_properties("cuda").L2_cache_size
    return 2 + 2 * l2_bytes // max(1, bytes_per_call)


def _event_times_ms(rotation: Sequence[Call]) -> list[float]:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(rotation) + 1)]
    marks[0].record()
    for call, mark in zip(rotation, marks[1:], strict=True):
        call()
        mark.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in itertools.pairwise(marks)]


def _host_us(rotation: Sequence[Call]) -> float:
    start = time.perf_counter()
    for index in range(HOST_CALLS):
        rotation[index % len(rotation)]()
    elapsed = time.perf_counter() - start
    torch.cuda.synchronize()
    return 1e6 * elapsed / HOST_CALLS


def _peak_bytes(call: Call) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
