"""How the CUDA kernels run given arguments, without running them: :func:`explain`."""

from __future__ import annotations

import os
from dataclasses import dataclass
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


STRATEGIES = ("split", "stream", "resident")
DTYPES = ("float32", "bfloat16", "float16", "float64")
LAYOUTS = ("nchw", "nhwc")
TAILS = ("none", "add", "add_relu")
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Problem:
    """What a plan is made for: one direction of the layer on tensors of one kind.

    Attributes:
        n, c, s, r: samples, channels, positions, channels of the squeeze.
        dtype, weight_dtype: of x, and of the weights.
        layout: how the op reads x: ``nchw`` or ``nhwc``.
        tail: ``none``, ``add`` or ``add_relu``.
        direction: ``forward`` or ``backward``.
        aligned: whether every tensor of x's size starts on a 16-byte boundary.
    """

    n: int
    c: int
    s: int
    r: int
    dtype: str
    weight_dtype: str
    layout: str
    tail: str
    direction: str
    aligned: bool

    @classmethod
    def of(
        cls,
        x: Tensor,
        reduce_weight: Tensor,
        residual: Tensor | None = None,
        tail: str = "none",
        direction: str = "forward",
    ) -> Problem:
        """Of a call's tensors; gradients, which may not exist yet, are taken to be aligned."""
        read = [x] if residual is None or direction == "backward" else [x, residual]
        return cls(
            n=x.shape[0],
            c=x.shape[1],
            s=x.shape[2:].numel(),
            r=reduce_weight.shape[0],
            dtype=dtype_name(x.dtype),
            weight_dtype=dtype_name(reduce_weight.dtype),
            layout="nchw" if _ops._output_like(x).is_contiguous() else "nhwc",
            tail=tail,
            direction=direction,
            aligned=all(map(_aligned, read)),
        )

    def plan(
        self,
        limits: DeviceLimits,
        strategy: str = "",
        group: int = 0,
        lag: int = 0,
        blocks: int = 0,
    ) -> Plan:
        """How it is run: as forced, and where that is empty or 0 by the rule.

        Raises:
            ValueError: what is forced cannot run it.
        """
        from seblock_cuda import _core

        forced = strategy, group, lag, blocks
        return _core.plan(*self._layer(), self.tail, self.direction, limits, *forced)

    def candidates(self, limits: DeviceLimits) -> list[Plan]:
        """What is worth trying, the rule's own plan first: csrc/candidates.h."""
        from seblock_cuda import _core

        return _core.candidates(*self._layer(), self.tail, self.direction, limits)

    def _layer(self) -> tuple[int, int, int, int, str, str, str, bool]:
        shape = self.n, self.c, self.s, self.r
        return *shape, self.dtype, self.layout, self.weight_dtype, self.aligned

    def codes(self) -> tuple[Any, ...]:
        """As the ops ``use_plan`` and ``tuned_plan`` take it."""
        return (
            *(self.n, self.c, self.s, self.r),
            *(DTYPES.index(self.dtype), DTYPES.index(self.weight_dtype)),
            *(LAYOUTS.index(self.layout), TAILS.index(self.tail)),
            *(DIRECTIONS.index(self.direction), self.aligned),
        )


@dataclass(frozen=True, repr=False)
class Plans:
    """How the CUDA kernels run the two directions: see csrc/plan.h.

    Attributes:
        forward, backward: the plans.
        sources: where they come from: ``rule``, ``tuned`` (here), ``shipped`` (with the library) or
            ``forced`` (by SEBLOCK_STRATEGY), forward and backward.
    """

    forward: Plan
    backward: Plan
    sources: tuple[str, str] = ("rule", "rule")

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
    if isinstance(reduce_weight, nn.Module):
        reduce_weight, expand_weight, reduce_bias, expand_bias = _operands(reduce_weight, input)
    c, r = input.shape[1], reduce_weight.shape[0]
    if expand_weight is None:
        expand_weight = reduce_weight.new_empty(c, r)
    check_arguments(input, reduce_weight, expand_weight, reduce_bias, expand_bias, residual)
    tail = "none" if residual is None else "add_relu" if residual_activation else "add"
    limits = device_limits(input.device)
    forward, backward = (
        _choose(Problem.of(input, reduce_weight, residual, tail, direction), limits)
        for direction in DIRECTIONS
    )
    return Plans(forward[0], backward[0], (forward[1], backward[1]))


def _choose(problem: Problem, limits: DeviceLimits) -> tuple[Plan, str]:
    """The plan that a call has, and where it comes from: `choose` in csrc/ops.cpp."""
    asked = os.environ.get("SEBLOCK_STRATEGY", "")
    if asked:
        return problem.plan(limits, strategy=asked), "forced"
    device = limits.capability, limits.multiprocessors, limits.l2_bytes
    found = torch.ops.seblock_cuda.tuned_plan(*device, *problem.codes())
    strategy, group, lag, blocks, shipped = found
    if strategy < 0:
        return problem.plan(limits), "rule"
    try:
        plan = problem.plan(limits, STRATEGIES[strategy], group, lag, blocks)
        return plan, "shipped" if shipped else "tuned"
    except ValueError:  # tuned for another batch
        return problem.plan(limits), "rule"


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


def device_limits(device: torch.device) -> DeviceLimits:
    """Of a CUDA device; of an H200 for any other."""
    from seblock_cuda import _core

    if device.type != "cuda":
        return _core.known_device("H200")
    found: Any = torch.cuda.get_device_properties(device)
    return _core.DeviceLimits(
        10 * found.major + found.minor,
        found.multi_processor_count,
        found.L2_cache_size,
        found.shared_memory_per_block_optin,
        _STREAM_BLOCKS,
    )
