"""How the CUDA kernels run given arguments, without running them: :func:`explain`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from seblock_cuda import _ops
from seblock_cuda.checks import check_arguments, dtype_name
from seblock_cuda.fused import FusedSE, Operands, operands_of
from seblock_cuda.reference import ResidualActivation

if TYPE_CHECKING:
    from seblock_cuda._core import DeviceLimits, Plan

# Blocks of the kernels of strategy stream on a multiprocessor: of 256 threads with 64 registers
# each, as docs/maintainers/compiled.md shows. A run asks the device itself.
_STREAM_BLOCKS = 4


@dataclass(frozen=True, repr=False)
class Plans:
    """How the CUDA kernels run the two directions: see csrc/plan.h."""

    forward: Plan
    backward: Plan

    @property
    def strategy(self) -> str | None:
        """The strategy of both directions; None where they differ."""
        one, other = self.forward.strategy, self.backward.strategy
        return one if one == other else None

    def __repr__(self) -> str:
        return f"forward: {self.forward}\nbackward: {self.backward}"


def explain(
    input: Tensor,
    reduce_weight: Tensor | nn.Module,
    expand_weight: Tensor | None = None,
    reduce_bias: Tensor | None = None,
    expand_bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    residual_activation: ResidualActivation = None,
) -> Plans:
    """How the CUDA kernels run these arguments: strategy, launches, bytes moved.

    Args:
        input: as :func:`seblock_cuda.squeeze_excitation` takes it; ``meta`` tensors do.
        reduce_weight: likewise, or a layer of this package or a converted one, which has the rest.
        expand_weight, reduce_bias, expand_bias, residual, residual_activation: likewise.

    Returns:
        :class:`Plans`: ``forward`` and ``backward``, each a plan with its ``strategy``,
        ``workspace_bytes`` and ``traffic``; printing it tells them in words.

    Takes tensors of any device, also ``meta``: nothing is run. The plans, ``forward`` and
    ``backward``, are those for input's own device if it is a CUDA device, else for an H200.
    Gradients, which do not exist yet, are taken to start on a 16-byte boundary.
    ``SEBLOCK_STRATEGY`` counts, as it does for the run itself.

    Raises:
        TypeError, ValueError: as :func:`seblock_cuda.squeeze_excitation` does; ValueError also if
            the strategy that ``SEBLOCK_STRATEGY`` asks for cannot run these arguments, or if the
            layer runs as plain PyTorch.
        RuntimeError: the op library was not built.
    """
    _ops.require()
    from seblock_cuda import _core

    if isinstance(reduce_weight, nn.Module):
        reduce_weight, expand_weight, reduce_bias, expand_bias = _operands(reduce_weight, input)
    n, c = input.shape[:2]
    r = reduce_weight.shape[0]
    if expand_weight is None:
        expand_weight = reduce_weight.new_empty(c, r)
    check_arguments(input, reduce_weight, expand_weight, reduce_bias, expand_bias, residual)
    plan = partial(
        _core.plan,
        n,
        c,
        input.shape[2:].numel(),
        r,
        dtype_name(input.dtype),
        "nchw" if _ops._output_like(input).is_contiguous() else "nhwc",
        dtype_name(reduce_weight.dtype),
        tail="none" if residual is None else "add_relu" if residual_activation else "add",
        limits=_device_limits(input),
        strategy=os.environ.get("SEBLOCK_STRATEGY", ""),
    )
    return Plans(
        plan(_aligned(input) and (residual is None or _aligned(residual)), direction="forward"),
        plan(_aligned(input), direction="backward"),
    )


def _operands(layer: nn.Module, input: Tensor) -> Operands:
    if not isinstance(layer, FusedSE):
        raise TypeError(f"reduce_weight must be a Tensor or a fused layer, got {layer!r}")
    operands = operands_of(layer._reading, layer, input)
    if operands is None:
        reason = layer._reading.reason(layer)
        raise ValueError(f"{type(layer).__name__} runs as plain PyTorch: {reason}")
    return operands


def _aligned(tensor: Tensor) -> bool:
    """Whether the op finds it on a 16-byte boundary: what it copies first is."""
    return tensor.is_meta or not _ops.is_native(tensor) or tensor.data_ptr() % 16 == 0


def _device_limits(input: Tensor) -> DeviceLimits:
    from seblock_cuda import _core

    if not input.is_cuda:
        return _core.known_device("H200")
    device: Any = torch.cuda.get_device_properties(input.device)
    return _core.DeviceLimits(
        10 * device.major + device.minor,
        device.multi_processor_count,
        device.L2_cache_size,
        device.shared_memory_per_block_optin,
        _STREAM_BLOCKS,
    )
