"""The machine that benchmarks/dataflow.py models: bandwidths, latencies, issue slots, blocks.

Its numbers are assumed, not measured: docs/maintainers/prediction.md.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field

CLOCK = 1.755e9  # everything below is in cycles of it, and in bytes
L2_BANDWIDTH = 5.5e12  # reads and writes
L2_USABLE = 0.6 * 50 * 2**20
FENCE, FLAG, ATOMIC = 700, 500, 843  # a flag: until a poll sees it; an atomic: there and back
L2_LATENCY, MEMORY_LATENCY, L1_LATENCY, BARRIER = 270, 600, 40, 30
STORES_BEHIND = 4e-6 * CLOCK  # stores wait if the memory is further behind than this
LAUNCH, GAP, OVERLAPPED_GAP = (us * 1e-6 * CLOCK for us in (1.5, 1.0, 0.5))  # a memset: LAUNCH
BLOCK_START = 400
ISSUE = 4 * 0.9  # instructions of warps that a multiprocessor starts in a cycle
WARPS = 8  # of a block

Steps = Generator["float | None", None, None]  # of a block: yields when it goes on


@dataclass(frozen=True)
class Costs:
    """What the machine costs; factors shrink a term of the model or take it out."""

    hbm: float  # bytes a cycle
    l2: float = L2_BANDWIDTH / CLOCK
    instructions: float = 1.0
    products: float = 1.0  # latency and instructions of the products
    fence: float = 1.0  # fences and atomics
    gradients: float = 1.0  # instructions of the gradients
    cycles: float = 1.8  # from one instruction of a warp to its next, if nobody else issues


@dataclass
class Machine:
    costs: Costs
    multiprocessors: int
    now: float = 0.0
    hbm_free: float = 0.0
    l2_free: float = 0.0
    moved: float = 0.0  # bytes, by the memory
    issue_free: list[float] = field(default_factory=list)
    events: list[tuple[float, int, Steps]] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        self.issue_free = [0.0] * self.multiprocessors

    def l2(self, size: float) -> float:
        self.l2_free = max(self.l2_free, self.now) + size / self.costs.l2
        return self.l2_free

    def memory(self, size: float) -> float:
        """When so many bytes are there, without the latency."""
        self.hbm_free = max(self.hbm_free, self.now) + size / self.costs.hbm
        self.moved += size
        return max(self.hbm_free, self.l2(size))

    def again(self, size: float, mark: float) -> float:
        """The same of what was read when `mark` bytes had been moved: from the L2 what is there."""
        hit = min(1.0, max(0.0, (1.6 - (self.moved - mark) / L2_USABLE) / 0.8))
        there = self.l2(size) + L2_LATENCY
        if hit < 1:
            self.hbm_free = max(self.hbm_free, self.now) + size * (1 - hit) / self.costs.hbm
            self.moved += size * (1 - hit)
            there = max(there, self.hbm_free + MEMORY_LATENCY)
        return there

    def store(self, size: float) -> float:
        self.memory(size)
        return max(self.now, self.hbm_free - STORES_BEHIND)

    def issue(self, sm: int, each: float, more: float = 0.0, latency: float = 0.0) -> float:
        """When a block is done with `each` instructions a warp and `more` of single warps."""
        factor = self.costs.instructions
        total = (WARPS * each + more) * factor
        self.issue_free[sm] = max(self.issue_free[sm], self.now) + total / ISSUE
        return max(self.issue_free[sm], self.now + self.costs.cycles * each * factor + latency)

    def resume(self, at: float, block: Steps) -> None:
        self.count += 1
        heapq.heappush(self.events, (at, self.count, block))

    def run(self, blocks: Iterable[Steps]) -> None:
        """Until all blocks have ended, and their stores."""
        for block in blocks:
            self.resume(self.now, block)
        while self.events:
            self.now, _, self.running = heapq.heappop(self.events)
            if (at := next(self.running, None)) is not None:
                self.resume(at, self.running)
        self.now = max(self.now, self.hbm_free)
