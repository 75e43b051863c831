"""Runs the CUDA kernels on torch CPU tensors through the SIMT harness: forward and backward, as the
op does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seblock_cuda import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
POISON = float("nan")  # in every output and workspace before a run: a missing write shows


@dataclass
class Run:
    """What a forward and a backward pass left behind."""

    y: Tensor
    pooled: Tensor
    z1: Tensor
    gate: Tensor
    gradients: reference.Gradients


def layout_of(x: Tensor) -> int:
    """0 for nchw, 1 for nhwc, as in se_types.h."""
    return 0 if x.is_contiguous() else 1


def run(
    module: Any,
    dy: Tensor,
    x: Tensor,
    reduce_weight: Tensor,
    expand_weight: Tensor,
    reduce_bias: Tensor | None = None,
    expand_bias: Tensor | None = None,
    activation: str = "relu",
    gate: str = "sigmoid",
) -> Run:
    """Forward and backward of x (contiguous or channels last, dy alike) on the harness `module`."""
    n, c = x.shape[:2]
    r = reduce_weight.shape[0]
    acc = reference.accumulation_dtype(x.dtype)
    problem = module.Problem(
        n,
        c,
        x[0, 0].numel() if n else x.shape[2:].numel(),
        r,
        layout_of(x),
        DTYPES.index(x.dtype),
        DTYPES.index(reduce_weight.dtype),
        list(reference.ACTIVATIONS).index(activation),
        list(reference.GATES).index(gate),
    )

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.full(shape, POISON, dtype=dtype)

    weights = [reduce_weight, expand_weight]
    biases = [reduce_bias, expand_bias]
    y = torch.full_like(x, POISON)
    pooled, z1, gates = (empty(n, width, dtype=acc) for width in (c, r, c))
    forward_bytes, backward_bytes = module.workspace_bytes(problem)
    workspace = torch.full((forward_bytes,), 255, dtype=torch.uint8)
    module.forward(problem, _addresses(*weights, *biases, x, y, pooled, z1, gates, workspace))

    dx = torch.full_like(x, POISON)
    dweights = [torch.full_like(weight, POISON) for weight in weights]
    dbiases = [None if bias is None else torch.full_like(bias, POISON) for bias in biases]
    workspace = torch.full((backward_bytes,), 255, dtype=torch.uint8)
    module.backward(
        problem,
        _addresses(*weights, dy, x, pooled, z1, gates, dx, *dweights, *dbiases, workspace),
    )
    return Run(y, pooled, z1, gates, reference.Gradients(dx, *dweights, *dbiases))


def _addresses(*tensors: Tensor | None) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
