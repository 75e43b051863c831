"""What is timed as a CUDA graph is the call itself: results, memory, streams; on a pretend GPU."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import pytest
import torch

from benchmarks.problems import Problem
from benchmarks.providers import DIRECTIONS, direction_call, fused, graph_call
from benchmarks.workloads import Workload
from tests.standin import control

pytestmark = pytest.mark.standin
TINY = Workload("tiny", 1, 8, 5, 7, 4, "relu", "sigmoid", True, 3)


def on_cuda() -> Problem:
    made = Problem.make(TINY, 3, torch.float32, "nhwc", torch.device("cpu"), with_residual=True)
    leaves = {name: tensor.detach().to("cuda") for name, tensor in made.inputs.items()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    return dataclasses.replace(made, dy=made.dy.to("cuda"), **leaves)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_replay_does_what_the_call_does(direction: str, recwarn: pytest.WarningsRecorder) -> None:
    problem = on_cuda()
    control.faults()
    call = direction_call(fused, problem, direction)  # lives beside the graph, as when timed
    replay = graph_call(fused, problem, direction)
    results, expected = replay(), call()
    for actual, wanted in (
        [(results, expected)] if direction == "forward" else zip(results, expected, strict=True)
    ):
        assert torch.equal(actual.cpu(), wanted.cpu())
    assert control.faults() == []
    assert not [w for w in recwarn if "stream does not match" in str(w.message)]


def test_what_a_backward_reads_lives_as_long_as_its_replay() -> None:
    made = []

    def provider(problem: Problem) -> torch.Tensor:
        y = fused(problem)
        made.append(weakref.ref(y))
        return y

    replay = graph_call(provider, on_cuda(), "backward")
    gc.collect()
    assert len(made) == 1 and made[0]() is not None
    del replay
    gc.collect()
    assert made[0]() is None
