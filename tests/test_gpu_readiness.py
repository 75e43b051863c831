"""What the tests need on a GPU, as far as it shows without one: devices, precision, time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seblock_cuda import explain
from tests import cases, models, sanitized_shapes
from tests.test_cuda_strategies import planned


def test_gradients_start_on_the_device_of_y() -> None:
    """With the meta device in the GPU's place: it refuses a gradient of the CPU just so."""
    layer = nn.Conv2d(3, 2, 1, device="meta")
    found = models.results(layer, torch.empty(2, 3, 4, 4, device="meta"))
    assert set(found) == {"y", "x", "weight", "bias"}
    assert {value.device.type for value in found.values()} == {"meta"}


def test_no_test_compares_under_tf32() -> None:
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("tail", [None, *cases.TAILS])
def test_an_outline_has_the_plan_of_the_problem(layout: str, tail: str | None) -> None:
    plans = set()
    for outline in (False, True):
        problem = cases.make_problem(
            cases.SHAPES["even"], torch.bfloat16, layout, bias=True, tail=tail, outline=outline
        )
        plans.add(repr(explain(problem.x, *problem.parameters, **problem.tail)))
        assert problem.dy.stride() == problem.x.stride() and problem.dy.dtype == problem.x.dtype
    assert len(plans) == 1


def test_what_a_strategy_cannot_run_is_skipped_before_there_is_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Drawing the data of all that is skipped would take a GPU's minutes."""
    drawn = []

    def randn(*size: int, **options: object) -> torch.Tensor:
        drawn.append(size)
        return torch.zeros(size)

    monkeypatch.setattr(torch, "randn", randn)
    monkeypatch.setenv("SEBLOCK_STRATEGY", "split")
    planned("split", cases.make_problem, cases.SHAPES["even"], torch.float64, device="cpu")
    assert len(drawn) == 5
    drawn.clear()
    monkeypatch.setenv("SEBLOCK_STRATEGY", "resident")
    with pytest.raises(pytest.skip.Exception, match="float64"):
        planned("resident", cases.make_problem, cases.SHAPES["even"], torch.float64, device="cpu")
    assert drawn == []


def test_the_sanitized_shapes_have_every_tail_in_both_layouts() -> None:
    found = {
        (label.split(", ")[-2], problem.residual is not None, problem.residual_activation)
        for label, problem in sanitized_shapes.problems(few=False)
        if problem.x.numel() and problem.x.dtype == torch.bfloat16
    }
    tails = [(False, None), (True, None), (True, "relu")]
    assert found == {(layout, *tail) for layout in cases.LAYOUTS for tail in tails}


def test_a_sanitized_run_has_the_gradient_of_the_residual() -> None:
    problem = cases.make_problem(cases.SHAPES["7x7"], bias=True, tail="add_relu")
    results = sanitized_shapes.run(problem, "cpu")
    assert "dresidual" in results
    cases.check_no_worse_than_plain(results, problem)
