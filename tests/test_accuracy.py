"""Over many draws the error is not above plain PyTorch's: no slack, no lucky or unlucky tensor
decides.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from tests import cases
from tests.test_op import run

DRAWS = 25


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, *cases.LOW_PRECISION], ids=str)
@pytest.mark.parametrize(
    "shape", [(4, 32, (7, 7), 4), (2, 16, (28, 28), 4), (2, 8, (65, 67), 2)], ids=str
)
def test_mean_error(shape: tuple, dtype: torch.dtype, layout: str, device: str) -> None:
    ours: dict[str, float] = defaultdict(float)
    plain: dict[str, float] = defaultdict(float)
    for seed in range(DRAWS):
        problem = cases.make_problem(shape, dtype, layout, seed=seed, bias=True, device=device)
        expected, baseline = cases.truth(problem), cases.plain(problem)
        for name, actual in run(problem).items():
            ours[name] += cases.rms(actual.double() - expected[name]) ** 2
            plain[name] += cases.rms(baseline[name].double() - expected[name]) ** 2
    factor = 2 if dtype == torch.float32 else 1
    for name in ours:
        assert ours[name] ** 0.5 <= factor * plain[name] ** 0.5, name
