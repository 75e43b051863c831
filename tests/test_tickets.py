"""Strategy stream's tickets: every task once, what it waits for before it; and no block hangs."""

from __future__ import annotations

import itertools
from types import ModuleType

import pytest
import torch

from tests import cases
from tests.simt import kernels

SAMPLES, TASKS = range(1, 8), range(1, 6)


@pytest.mark.parametrize("samples", SAMPLES)
def test_every_ticket(simt: ModuleType, samples: int) -> None:
    """For every lag, and every number of squeeze and of scale tasks of a sample."""
    for lag, squeezes, scales in itertools.product(range(1, samples + 1), TASKS, TASKS):
        tickets = simt.tickets(samples, lag, squeezes, scales)
        where = (samples, lag, squeezes, scales)
        every = {
            (is_scale, sample, task)
            for is_scale, tasks in ((False, squeezes), (True, scales))
            for sample in range(samples)
            for task in range(tasks)
        }
        assert len(tickets) == len(every) and set(tickets) == every, where
        squeezed: dict[int, int] = dict.fromkeys(range(samples), 0)
        for is_scale, sample, _ in tickets:
            if is_scale:
                assert squeezed[sample] == squeezes, (*where, sample)
                ahead = sum(count > 0 for count in squeezed.values()) - sample - 1
                assert ahead <= lag, (*where, sample)
            else:
                squeezed[sample] += 1


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("lag", [1, 2, 5])
@pytest.mark.parametrize("resident", [1, 2, 3])
def test_no_block_waits_forever(simt: ModuleType, resident: int, lag: int, layout: str) -> None:
    """However few of the blocks there are room for, in whatever order they start: one that is not
    resident runs only when another has ended.
    """
    problem = cases.make_problem(
        (5, 16, (30, 30), 3), torch.bfloat16, layout, bias=True, tail="add_relu"
    )
    expected = kernels.named(kernels.run(simt, problem))
    try:
        for blocks, seed in itertools.product((1, 4, 30), range(4)):
            simt.set_schedule(resident=resident, seed=seed)
            forced = kernels.Forced(lag=lag, blocks=blocks)
            run = kernels.run(simt, problem, strategy="stream", forced=forced)
            for name, tensor in kernels.named(run).items():
                assert torch.equal(tensor, expected[name]), name
    finally:
        simt.set_schedule()
