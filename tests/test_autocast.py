"""Autocast casts nothing: the output has the input's dtype, float32 master weights go in as they
are.
"""

from __future__ import annotations

import pytest
import torch

from seblock_cuda import SEBlock, squeeze_excitation
from seblock_cuda.reference import PlainSEBlock
from tests import cases


@pytest.mark.parametrize("dtype", [torch.float32, *cases.LOW_PRECISION], ids=str)
def test_same_numbers_as_without(dtype: torch.dtype, device: str) -> None:
    problem = cases.make_problem(
        cases.SHAPES["even"], dtype, weight_dtype=torch.float32, device=device
    )
    weights = [problem.reduce_weight.requires_grad_(), problem.expand_weight.requires_grad_()]
    x = problem.x.requires_grad_()

    def run() -> list[torch.Tensor]:
        y = squeeze_excitation(x, *weights)
        return [y, *torch.autograd.grad(y, [x, *weights], problem.dy)]

    expected = run()
    with torch.autocast(device, torch.bfloat16):
        actual = run()
    for ours, theirs in zip(actual, expected):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_double_backward_under_autocast(device: str) -> None:
    block = SEBlock(12, 1 / 3, device=device)
    x = torch.randn(3, 12, 4, 4, device=device, requires_grad=True)
    results = []
    for enabled in (False, True):
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            y = block(x)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), x)[0])
    assert torch.allclose(*results)


def test_closer_to_the_truth_than_the_plain_block(device: str) -> None:
    """Mixed precision as people train: the plain block's convolutions run in bfloat16, ours in
    float32.
    """
    torch.manual_seed(0)
    fused = SEBlock(64, 1 / 8).to(device)
    plain = PlainSEBlock(64, 1 / 8).to(device)
    plain.load_state_dict(fused.state_dict())
    exact = PlainSEBlock(64, 1 / 8).to(device, torch.float64)
    exact.load_state_dict(fused.state_dict())
    x = torch.randn(4, 64, 14, 14, device=device).bfloat16()
    truth = exact(x.double())
    with torch.autocast(device, torch.bfloat16):
        ours, theirs = fused(x), plain(x)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert cases.rms(ours.double() - truth) <= cases.rms(theirs.double() - truth)
