"""The ops as formulas: in PyTorch's own operators, and in FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from seblock_cuda import _ops, reference
from seblock_cuda.functional import names_of


def decompositions() -> dict[Any, Callable[..., Any]]:
    """PyTorch's default table of decompositions, and the ops of this package in it.

    For whoever takes PyTorch's own operators only:
    ``program.run_decompositions(seblock_cuda.decompositions())`` of a program from
    ``torch.export.export``, before ``torch.onnx.export`` or a back end without these ops; also
    ``make_fx(..., decomposition_table=...)``. Without it programs keep the op, which is faster.

    Raises:
        RuntimeError: the op library was not built.
    """
    _ops.require()
    table: dict[Any, Callable[..., Any]] = torch.export.default_decompositions()
    for forward in _ops.forwards():
        table[forward.default] = _forward
    table[torch.ops.seblock_cuda.se_backward.default] = _backward
    return table


def _laid_out(y: Tensor, x: Tensor) -> Tensor:
    """y with the strides that the op gives it."""
    if _ops._output_like(x).is_contiguous():
        return y.contiguous()
    return y.movedim(1, -1).contiguous().movedim(-1, 1)


def _forward(
    x: Tensor,
    reduce_weight: Tensor,
    expand_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    gate: int,
    tail: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    parameters = (reduce_weight, expand_weight, reduce_bias, expand_bias)
    relu = tail == _ops.TAIL_ADD_RELU
    with reference.as_written(x):
        stages = reference.excite(
            x, *parameters, *names_of(activation, gate), reference.accumulation_dtype(x.dtype)
        )
        y = reference.scale(x, stages.gate, residual, "relu" if relu else None)
        mask = _ops.pack_mask((y <= 0).logical_not(), x) if relu else None
    return _laid_out(y, x), stages.pooled, stages.z1, stages.gate, mask


def _backward(
    dy: Tensor,
    x: Tensor,
    reduce_weight: Tensor,
    expand_weight: Tensor,
    pooled: Tensor,
    z1: Tensor,
    gates: Tensor,
    mask: Tensor | None,
    reduce_bias: bool,
    expand_bias: bool,
    activation: int,
    gate: int,
    tail: int,
) -> tuple[Tensor | None, ...]:
    names = names_of(activation, gate)
    weights = torch.promote_types(reduce_weight.dtype, expand_weight.dtype)
    with reference.as_written(x):
        if mask is not None:
            dy = torch.where(_ops.unpack_mask(mask, x), dy, 0.0)
        hidden = reference.ACTIVATIONS[names[0]][0](z1)
        stages = reference.Stages(pooled, z1, hidden, gates)
        dx, dreduce, dexpand, dz1, dz2 = reference.gradients(
            dy, x, reduce_weight, expand_weight, stages, *names
        )
        return (
            _laid_out(dx, x),
            dreduce.to(weights),
            dexpand.to(weights),
            dz1.sum(0).to(weights) if reduce_bias else None,
            dz2.sum(0).to(weights) if expand_bias else None,
            None if mask is None else _laid_out(dy, x),
        )


# What FlopCounterMode counts: the products of a sample with the two matrices.


def _forward_flops(x: list[int], reduce_weight: list[int], *_: Any, **__: Any) -> int:
    return 2 * 2 * x[0] * reduce_weight[0] * reduce_weight[1]


def _backward_flops(_: Any, x: list[int], reduce_weight: list[int], *__: Any, **___: Any) -> int:
    return 2 * _forward_flops(x, reduce_weight)


if _ops.load_error is None:
    register_flop_formula(_ops.forwards())(_forward_flops)
    register_flop_formula(torch.ops.seblock_cuda.se_backward)(_backward_flops)
