"""FlopCounterMode counts SE's two products, and the four of its backward, as in plain layers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from seblock_cuda import SEBlock, convert_se_modules, squeeze_excitation, use_fused_se
from tests.models import Block, SELayer

N, C, R = 3, 12, 4


def count(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def train(model: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    x = torch.randn(N, C, 5, 3, requires_grad=True)
    return lambda: model(x).sum().backward()


def se(x: Tensor, *, trailing: tuple[int, ...] = (), **how: object) -> Tensor:
    weights = torch.randn(R, C, *trailing), torch.randn(C, R, *trailing)
    return squeeze_excitation(x, *(w.requires_grad_() for w in weights), **how)


@pytest.mark.parametrize("trailing", [(), (1, 1)], ids=["linear", "convolution"])
@pytest.mark.parametrize("tail", [False, True])
def test_the_function(tail: bool, trailing: tuple[int, ...]) -> None:
    def model(x: Tensor) -> Tensor:
        how = {"residual": x, "residual_activation": "relu"} if tail else {}
        return se(x, trailing=trailing, **how)

    forward = 2 * 2 * N * C * R
    with torch.no_grad():
        assert count(lambda: model(torch.randn(N, C, 5, 3))) == forward
    assert count(train(model)) == 3 * forward
    with use_fused_se(False):
        assert count(train(model)) == 3 * forward


def test_a_call_of_the_op() -> None:
    x, w1, w2 = torch.randn(N, C, 5, 3), torch.randn(R, C), torch.randn(C, R)
    x.requires_grad_()
    op = torch.ops.seblock_cuda.se_forward
    forward = 2 * 2 * N * C * R
    without = torch.ops.seblock_cuda.se_forward_no_grad
    assert count(lambda: without(x, w1, w2, None, None, None, 0, 0, 0)) == forward
    assert count(lambda: op(x, w1, w2, None, None, None, 0, 0, 0)) == forward
    both = count(lambda: op(x, w1, w2, None, None, None, 0, 0, 0)[0].sum().backward())
    assert both == 3 * forward


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(C, C, 1), SELayer(C), Block(C), SEBlock(C, 1 / 4))


def test_converted_layers() -> None:
    plain = network()
    fused = copy.deepcopy(plain)
    assert len(convert_se_modules(fused, fuse_residual=True).converted) == 2
    with use_fused_se(False):
        expected = count(train(plain))
    assert count(train(fused)) == expected > 0


def test_an_exported_program() -> None:
    """It calls the op, whatever hooks there are."""
    plain = network()
    fused = copy.deepcopy(plain)
    convert_se_modules(fused)
    x = torch.randn(N, C, 5, 3)
    program = torch.export.export(fused, (x,))
    assert any("se_forward" in str(node.target) for node in program.graph.nodes)
    with use_fused_se(False):
        expected = count(train(plain))
    assert count(train(program.module())) == expected
