"""The timing method, on the CPU and on CUDA.

CPU: `torch.utils.benchmark.Timer` at a stated thread count. The providers take turns, several short
rounds each, so that a slow spell of the machine falls on all of them; the median, p20 and p80 are
over the blocks of all rounds (a block is as many calls as make the clock's cost negligible). Every
call works on the same tensors: what fits in the processor's caches stays there ("hot"), for every
provider alike. With malloc as it is, page faults count, and glibc hands large blocks back to the
system or not depending on what was allocated before: `make cpu-results` measures with a malloc that
keeps them, and once more without.

CUDA: events around every call after a warm-up, providers in turns. Calls rotate through enough sets
of inputs that none of them is still in the L2 cache ("cold"), or repeat on one set ("hot"). Below
about 1 MB that would take too many sets: there launches are what costs, wherever the data are. The
host's time per call is measured apart, by queueing calls without waiting. Where the host is slower
than the kernels, the events contain the gaps between launches: that is what eager code pays. What
one call launches is what `torch.profiler` sees on the device: kernels, copies and fills.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, schedule
from torch.utils.benchmark import Timer

Call = Callable[[], object]

ROUNDS = 5  # turns that every provider takes
WARM_UP = 3  # calls on every set of inputs, CUDA
MOST_SETS = 128  # of inputs to rotate through, CUDA
MOST_SAMPLES = 500  # repetitions of one provider, CUDA: tiny calls would fill the files
HOST_CALLS = 20  # calls queued to measure the host's time, CUDA: few enough to fit in the queue


@dataclass(frozen=True)
class Timing:
    """Milliseconds of every repetition; on CUDA also what else a call takes (see `time_cuda`)."""

    samples_ms: Sequence[float]
    host_us: float | None = None
    peak_bytes: int | None = None
    launches: int | None = None

    @property
    def median_ms(self) -> float:
        return statistics.median(self.samples_ms)

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.samples_ms, percent))


def time_cpu(
    calls: Mapping[str, Call], *, threads: int, seconds: float, rounds: int = ROUNDS
) -> dict[str, Timing]:
    """Times every call for at least `seconds`, in turns."""
    timers = {
        name: Timer("call()", globals={"call": call}, num_threads=threads)
        for name, call in calls.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, timer in timers.items():
            measured = timer.blocked_autorange(min_run_time=seconds / rounds)
            samples[name] += [1e3 * second for second in measured.times]
    return {name: Timing(values) for name, values in samples.items()}


def time_cuda(
    calls: Mapping[str, Sequence[Call]], *, seconds: float, with_costs: bool = True
) -> dict[str, Timing]:
    """Times, in turns, providers given as one call per set of inputs (see `cold_sets`).

    Costs are what a call takes besides device time: of the host, of memory (the peak beyond what
    was taken before the call), and of launches.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    costs: dict[str, tuple[float, int, int | None]] = {}
    for name, rotation in calls.items():
        for _ in range(WARM_UP):
            for call in rotation:
                call()
        if with_costs:
            costs[name] = (_host_us(rotation), peak_bytes(rotation[0]), _launches(rotation[0]))
    for _ in range(ROUNDS):
        for name, rotation in calls.items():
            start, first = time.perf_counter(), len(samples[name])
            while True:
                samples[name] += _event_times_ms(rotation)
                enough = len(samples[name]) - first >= MOST_SAMPLES // ROUNDS
                if enough or time.perf_counter() - start > seconds / ROUNDS:
                    break
    return {name: Timing(samples[name], *costs.get(name, ())) for name in calls}


def cold_sets(bytes_per_call: int) -> int:
    """How many sets of inputs to rotate through so that the L2 cache has lost a set at its turn."""
    l2_bytes: int = torch.cuda.get_device_properties("cuda").L2_cache_size
    return min(MOST_SETS, 2 + 2 * l2_bytes // max(1, bytes_per_call))


def peak_bytes(call: Call) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def device_activities(call: Call, device: DeviceType = DeviceType.CUDA) -> list[tuple[str, float]]:
    """The kernels, copies and fills that a call puts on the device, in order, with microseconds.

    What is only a name for a stretch of them, as torch.compile gives to its graphs, is left out.
    """
    both = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    once = schedule(wait=0, warmup=1, active=1)
    with profile(activities=both, schedule=once, acc_events=True) as profiler:
        call()  # the session may miss its first kernels: these are not recorded
        torch.cuda.synchronize()
        profiler.step()
        call()
        torch.cuda.synchronize()
    events = [
        event
        for event in profiler.events()
        if event.device_type == device and not event.is_user_annotation
    ]
    events.sort(key=lambda event: event.time_range.start)
    return [(event.name, event.time_range.elapsed_us()) for event in events]


def _launches(call: Call) -> int | None:
    """None where the profiler sees nothing, as on machines that forbid it."""
    return len(device_activities(call)) or None


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
