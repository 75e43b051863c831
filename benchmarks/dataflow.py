"""A model of the GPU: how long each strategy takes, without one. benchmarks/predict.py uses it.

No GPU has confirmed it. Blocks step through their tasks as the drivers in csrc/cuda/drivers make
them, against the bandwidth of the memory and of the L2 and against each multiprocessor's issue
slots. How tasks are cut is csrc/tiling.h, in which order they are taken csrc/tickets.h, and group,
lag and blocks are the plan's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from math import ceil
from pathlib import Path
from typing import NamedTuple, TypeVar

from benchmarks.machine import (
    ATOMIC,
    BARRIER,
    BLOCK_START,
    FENCE,
    FLAG,
    GAP,
    L1_LATENCY,
    L2_LATENCY,
    LAUNCH,
    MEMORY_LATENCY,
    OVERLAPPED_GAP,
    Costs,
    Machine,
    Steps,
)
from build_tools import compiled
from seblock_cuda import _core

ROOT = Path(__file__).resolve().parent.parent
TASK_VECTORS = 4  # of a thread and task

# Instructions outside a task's vectors, counted in the sm_90 code of strategy split (bfloat16, no
# tail): from the entry to the first 16-byte load of the path, or to the branch around the first
# vector (scale); and behind the last vector, a loop with its turns. (forward, backward) each.
BEGIN = {
    ("squeeze", "rows"): (86, 90),
    ("squeeze", "planes"): (90, 101),
    ("squeeze", "small planes"): (81, 97),
    ("scale", "rows"): (125, 132),
    ("scale", "planes"): (76, 84),
    ("scale", "planes of whole vectors"): (76, 83),
}
ADD_GROUPS, PER_8_GROUPS = 78, 51  # squeeze by rows: of a thread that adds the groups' sums
PUT_PLANE, PER_SHUFFLE, ADD_CHUNKS = 28, 5, 90  # squeeze by planes
DECODE, ARRIVE = 60, 28  # stream_kernel, from its loop's head and around the counter
# Products: of a turn of weights that are loaded together (8, with one sample 4), by samples of the
# kernel, aligned bfloat16; around the turns of a tile; of an input that is staged, and for every 8
# parts of its sum.
TURN = {"rows": {1: 120, 4: 346, 8: 562}, "columns": {1: 128, 4: 344, 8: 480}}
TILE, INPUT, PER_8_PARTS = 120, 75, 165
GRADIENT_TURN = 4 * 119 + 250  # gradients_kernel: 16 samples

Task = TypeVar("Task")


@cache
def kernels() -> dict[str, compiled.Kernel]:
    return {k.name: k for k in compiled.parse((ROOT / compiled.TABLE).read_text()).kernels}


class Product(NamedTuple):
    width: int  # inputs
    height: int  # outputs
    reduces: bool  # or expands
    lanes: int
    outputs: int  # of a tile
    tiles: int  # of a block


class Simulation:
    """One direction of a problem on a machine; cycles from the first block to the last store."""

    def __init__(
        self, shape: tuple[int, ...], layout: str, direction: str, plan: _core.Plan, costs: Costs
    ) -> None:
        self.n, self.c, self.s, self.r = shape
        self.forward, self.plan = direction == "forward", plan
        self.tiling = _core.Tiling(self.c, self.s, "bfloat16", layout)
        planes = "small planes" if self.tiling.small_planes else "planes"
        self.path = "rows" if self.tiling.by_rows else planes
        self.order = "rows" if self.forward else "columns"
        self.machine = Machine(costs, _core.known_device("H100").multiprocessors)
        self.sample_bytes = 2 * self.c * self.s
        source, writes = ("Input", "Gated") if self.forward else ("InputTimesGradient", "Gated")
        source += "<bfloat16>" if self.forward else "<bfloat16, false>"
        writes += "<bfloat16, false>" if self.forward else "Gradient<bfloat16, false>"
        self.squeezes = kernels()[f"squeeze_kernel<true, {layout}, {source}>"]
        self.scales = kernels()[f"scale_kernel<true, {layout}, {writes}>"]
        self.resident_kernel = kernels()[f"resident_kernel<{layout}, {writes}>"]
        self.marks = [[0.0] * self.tiling.strips for _ in range(self.n)]

    def run(self) -> float:
        machine, strategy = self.machine, self.plan.strategy
        {"split": self.split, "stream": self.stream, "resident": self.resident}[strategy]()
        if not self.forward:
            machine.now += OVERLAPPED_GAP if self.plan.overlap else GAP
            tiles = 2 * ceil(self.r / 64) * ceil(self.c / 64)
            self.launch(2, range(tiles), lambda sm, _: self.gradients(sm))
        return machine.now + (LAUNCH if strategy == "stream" else 0.0)  # the memset

    # ---- drivers ----

    def launch(
        self, of_sm: int, tasks: Iterable[Task], steps: Callable[[int, Task], Steps]
    ) -> None:
        """A block per task, so many at a time on a multiprocessor."""
        left = iter(tasks)

        def slot(sm: int) -> Steps:
            for task in left:
                yield self.machine.now + BLOCK_START
                yield from steps(sm, task)

        sms = self.machine.multiprocessors
        self.machine.run([slot(i % sms) for i in range(of_sm * sms)])

    def split(self) -> None:
        gap = OVERLAPPED_GAP if self.plan.overlap else GAP
        each = ((i, k) for i in range(self.n) for k in range(self.tiling.strips))
        self.launch(
            blocks_by_registers(self.squeezes), each, lambda sm, t: self.squeeze(sm, t[0], t[1])
        )
        for stage in self.products():
            self.machine.now += gap
            groups = range(0, self.n, self.plan.group)
            tasks = [min(self.plan.group, self.n - i) for i in groups for _ in range(stage.tiles)]
            one_tile = stage._replace(tiles=1)
            self.launch(2, tasks, lambda sm, samples: self.product(sm, samples, one_tile))  # noqa: B023
        self.machine.now += gap
        back = ((i, k) for i in range(self.n)[::-1] for k in range(self.tiling.runs)[::-1])
        self.launch(
            blocks_by_registers(self.scales),
            back,
            lambda sm, t: self.scale(sm, t[0], t[1], self.again(*t)),
        )

    def resident(self) -> None:
        shared = 228 * 1024 // (self.plan.shared_bytes + 1024)
        of_sm = min(blocks_by_registers(self.resident_kernel), shared)

        def block(sm: int, sample: int) -> Steps:
            for strip in range(self.tiling.strips):
                yield from self.squeeze(sm, sample, strip)
            yield from self.products_of_sample(sm)
            for run in range(self.tiling.runs):
                yield from self.scale(sm, sample, run, lambda: self.machine.now + L1_LATENCY)

        self.launch(of_sm, range(self.n), block)

    def stream(self) -> None:
        machine, strips = self.machine, self.tiling.strips
        arrived, ready = [0] * self.n, [False] * self.n
        waiting: list[list[Steps]] = [[] for _ in range(self.n)]
        fence, atomic = FENCE * machine.costs.fence, ATOMIC * machine.costs.fence
        tickets = self.tickets()

        def wait(sample: int) -> Steps:
            if ready[sample]:
                yield machine.now + FLAG
            else:
                waiting[sample].append(machine.running)
                yield None

        def block(sm: int) -> Steps:
            ticket = next(tickets, None)
            yield machine.now + BLOCK_START + ATOMIC
            while ticket:
                scales, sample, task = ticket
                ticket, there = next(tickets, None), machine.now + ATOMIC
                yield machine.issue(sm, DECODE)
                if scales:
                    yield from self.scale(sm, sample, task, self.again(sample, task), wait)
                else:
                    yield from self.squeeze(sm, sample, task)
                    yield machine.issue(sm, ARRIVE, latency=2 * BARRIER) + fence + atomic
                    arrived[sample] += 1
                    if arrived[sample] == strips:
                        yield from self.products_of_sample(sm)
                        yield machine.now + fence
                        ready[sample] = True
                        for sleeper in waiting[sample]:
                            machine.resume(machine.now + FLAG, sleeper)
                yield max(machine.now, there)

        sms = machine.multiprocessors
        machine.run([block(i % sms) for i in range(self.plan.blocks)])

    def tickets(self) -> Iterator[tuple[bool, int, int]]:
        """csrc/tickets.h: whether it scales, the sample, the task."""
        lag = self.plan.lag
        for step in range(self.n + lag):
            squeezes = self.tiling.strips if step < self.n else 0
            scales = self.tiling.runs if step >= lag else 0
            for k in range(max(squeezes, scales)):
                if k < squeezes:
                    yield False, step, k
                if k < scales:
                    yield True, step - lag, k

    # ---- stages ----

    def squeeze(self, sm: int, sample: int, strip: int) -> Steps:
        tiling, machine = self.tiling, self.machine
        tensors, rounds = (1 if self.forward else 2), (2 if self.path == "small planes" else 1)
        size = self.sample_bytes / tiling.strips
        vector = self.squeezes.loops[self.path]["sm_90"].instructions
        for _ in range(rounds):
            yield machine.issue(sm, BEGIN["squeeze", self.path][not self.forward] / rounds)
            yield machine.memory(tensors * size / rounds) + MEMORY_LATENCY
            # a thread adds a plane
            alone = machine.costs.cycles * 2.6 * self.s if self.path == "small planes" else 0.0
            yield machine.issue(sm, TASK_VECTORS * vector / rounds, latency=alone)
        self.marks[sample][strip] = machine.moved
        machine.memory(4 * self.c * tiling.parts / tiling.strips)
        if self.path == "rows":
            add = ADD_GROUPS + PER_8_GROUPS * ceil(tiling.groups / 8)
            yield machine.issue(
                sm, 3, add * ceil(tiling.lanes / 4), BARRIER + machine.costs.cycles * add
            )
        else:
            shuffles = max(tiling.lanes, 1).bit_length() - 1
            add = ADD_CHUNKS if tiling.chunks > 1 else 0
            latency = 25 * shuffles + machine.costs.cycles * add + BARRIER
            yield machine.issue(sm, PUT_PLANE + PER_SHUFFLE * shuffles, add, latency)

    def again(self, sample: int, run: int) -> Callable[[], float]:
        tiling, machine = self.tiling, self.machine
        mark = self.marks[sample]
        strip = run * tiling.strips // tiling.runs
        return lambda: machine.again(self.sample_bytes / tiling.runs, mark[strip])

    def scale(
        self,
        sm: int,
        sample: int,
        run: int,
        read: Callable[[], float],
        wait: Callable[[int], Steps] | None = None,
    ) -> Steps:
        tiling, machine = self.tiling, self.machine
        path = "rows"
        if self.path != "rows":
            path = "planes" if self.s % 8 else "planes of whole vectors"
        yield machine.issue(sm, BEGIN["scale", path][not self.forward])
        there = read()
        if wait:
            yield from wait(sample)
        factors = (1 if self.forward else 2) * 4 * self.c / tiling.runs
        yield max(there, machine.l2(factors) + L2_LATENCY)
        vector = self.scales.loops[path]["sm_90"].instructions
        more = 0 if path == "rows" else (TASK_VECTORS - 1) * L1_LATENCY  # a plane's factor each
        yield machine.issue(sm, TASK_VECTORS * vector, latency=more)
        yield machine.store(self.sample_bytes / tiling.runs)

    def products(self) -> list[Product]:
        return [self.product_of(self.c, self.r, True), self.product_of(self.r, self.c, False)]

    def product_of(self, width: int, height: int, reduces: bool) -> Product:
        deal = _core.Deal(self.order == "rows", width, height)
        outputs = deal.outputs(self.plan.group)
        return Product(width, height, reduces, deal.lanes, outputs, ceil(height / outputs))

    def products_of_sample(self, sm: int) -> Steps:
        for stage in self.products():
            yield from self.product(sm, 1, stage)

    def product(self, sm: int, samples: int, stage: Product) -> Steps:
        """Its tiles, one after the other."""
        width, height, reduces, lanes, outputs, tiles = stage
        machine, costs, order = self.machine, self.machine.costs, self.order
        kernel = 1 if samples == 1 else 4 if samples <= 4 else 8
        room = (4096 if order == "rows" else 2048) // kernel  # inputs in shared memory
        loads, groups = 4 if kernel == 1 else 8, 256 // lanes
        turn_inputs = 4 * lanes * (4 if kernel == 1 else 2) if order == "rows" else groups * loads
        counts = [min(room, width - begin) for begin in range(0, width, room)]
        turns = sum(ceil(count / turn_inputs) for count in counts)
        parts = self.tiling.parts if reduces else 1
        trips = ceil(parts / 16)
        for tile in range(tiles):
            if tile == 0 or len(counts) > 1:  # inputs are staged
                items = sum(ceil(count * kernel / 256) for count in counts)
                each = (
                    items
                    * (INPUT + (PER_8_PARTS * ceil(parts / 8) if parts > 1 else 0))
                    * costs.products
                )
                there = machine.l2(4 * width * samples * (parts if reduces else 1))
                waits = items * trips * L2_LATENCY * costs.products
                yield max(there, machine.issue(sm, each, latency=waits))
            each, waits = TURN[order][kernel] * turns + TILE, turns * L2_LATENCY
            if order == "columns":  # groups meet in shared memory
                rounds, at_once = max(1, kernel // 2), min(2, kernel)
                adds = 41 * ceil(groups / 8) * ceil(outputs * at_once / 256)
                waits += rounds * (2 * BARRIER + machine.costs.cycles * adds)
                each += rounds * adds
            else:
                waits += 25 * (lanes.bit_length() - 1)  # shuffles
            there = machine.l2(2.0 * min(outputs, height) * width)
            done = machine.issue(sm, each * costs.products, latency=waits * costs.products)
            yield max(there, done)
        machine.l2(4 * min(height, outputs * tiles) * samples)

    def gradients(self, sm: int) -> Steps:
        machine = self.machine
        for begin in range(0, self.n, 16):
            there = machine.l2(4 * 128 * min(16, self.n - begin)) + L2_LATENCY
            yield max(there, machine.issue(sm, GRADIENT_TURN * machine.costs.gradients))
        yield machine.store(2 * min(self.r, 64) * min(self.c, 64))


def blocks_by_registers(kernel: compiled.Kernel) -> int:
    return min(8, 65536 // (256 * 8 * ceil(kernel.registers["sm_90"] / 8)))
