"""Every guard is shown to work: kernels broken on purpose, and the guard that goes red."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests import cases
from tests.simt import audit, build, guards, kernels, mutants
from tests.simt.faults import FORCED, Case, Shape, drivers, products, scale, squeeze

CASES = [*squeeze.CASES, *products.CASES, *scale.CASES, *drivers.CASES]


@pytest.fixture(scope="module")
def modules(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Path]]]:
    """Builds the unbroken kernels and every selected mutant, one per core at a time."""
    try:
        base = mutants.build_base()
    except build.MissingTool as reason:
        pytest.skip(str(reason))
    selected = [item.callspec.params.get("case") for item in request.session.items
                if item.path == request.path and hasattr(item, "callspec")]  # fmt: skip
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        built = {
            case.mutant.name: pool.submit(mutants.build_mutant, case.mutant, base)
            for case in filter(None, selected)
        }
        built["base"] = pool.submit(lambda: base)
        yield built
        pool.shutdown(cancel_futures=True)


def problem_of(shape: Shape, layout: str) -> cases.Problem:
    return cases.make_problem(
        shape, torch.bfloat16, layout, weight_dtype=torch.float32, bias=True, tail="add_relu"
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.mutant.name)
def test_the_guard_goes_red(modules: dict[str, Future[Path]], case: Case) -> None:
    module = kernels.load(modules[case.mutant.name].result())
    problem = problem_of(case.shape, case.layout)
    forced = FORCED.get(case.strategy, kernels.AS_PLANNED)
    message = case.guard(module, problem, strategy=case.strategy, forced=forced)
    assert case.message in message, message or "the guard saw nothing"


@pytest.mark.parametrize("strategy", kernels.STRATEGIES)
@pytest.mark.parametrize(
    ("shape", "layout"), sorted({(case.shape, case.layout) for case in CASES}), ids=str
)
def test_the_unbroken_kernels_pass_every_guard(
    modules: dict[str, Future[Path]], shape: Shape, layout: str, strategy: str
) -> None:
    module = kernels.load(modules["base"].result())
    problem = problem_of(shape, layout)
    forced = FORCED.get(strategy, kernels.AS_PLANNED)
    try:
        audit.plans_of(problem, strategy, forced)
    except ValueError as reason:
        pytest.skip(str(reason))
    assert guards.traffic(module, problem, strategy, forced) == ""
    assert guards.values(module, problem, strategy, forced) == ""
    assert guards.schedules(module, problem, range(1, 4), strategy, forced) == ""
