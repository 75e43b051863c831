"""The plain-PyTorch reference: the formulas of the layer, forward and explicit backward.

Everything in the project is measured against this file. Given float64 tensors it is the truth; it
is also what runs on devices that have no kernels, under ``torch.func`` and in a double backward,
since it is made of ordinary differentiable operations. :class:`PlainSEBlock` is the block that
people paste.

Glossary: ``x [N, C, *spatial]``, ``pooled [N, C]``, ``z1`` and ``hidden [N, R]``, ``gate [N, C]``,
``y`` like x; gradients prefix ``d``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["relu", "silu", "gelu", "hardswish", "leaky_relu", "identity"]
Gate = Literal["sigmoid", "hardsigmoid", "relu"]
ResidualActivation = Literal["relu"] | None
Pointwise = Callable[[Tensor], Tensor]


def _silu_slope(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _gelu_slope(z: Tensor) -> Tensor:
    cdf = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    return cdf + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _hardswish_slope(z: Tensor) -> Tensor:
    return torch.where(z <= -3, 0.0, torch.where(z < 3, z / 3 + 0.5, 1.0))


# name -> (function, derivative as a function of its argument), in the enum's order (se_types.h).
ACTIVATIONS: dict[Activation, tuple[Pointwise, Pointwise]] = {
    "relu": (F.relu, lambda z: torch.where(z <= 0, 0.0, torch.ones_like(z))),
    "silu": (F.silu, _silu_slope),
    "gelu": (F.gelu, _gelu_slope),
    "hardswish": (F.hardswish, _hardswish_slope),
    "leaky_relu": (F.leaky_relu, lambda z: torch.where(z > 0, 1.0, torch.full_like(z, 0.01))),
    "identity": (lambda z: z, torch.ones_like),
}

# name -> (function, derivative as a function of its result).
GATES: dict[Gate, tuple[Pointwise, Pointwise]] = {
    "sigmoid": (torch.sigmoid, lambda gate: gate * (1 - gate)),
    "hardsigmoid": (  # F.hardsigmoid to the bit, but with second derivatives
        lambda z: F.relu6(z + 3) / 6,
        lambda gate: torch.where((gate > 0) & (gate < 1), torch.full_like(gate, 1 / 6), 0.0),
    ),
    "relu": (F.relu, lambda gate: torch.where(gate <= 0, 0.0, torch.ones_like(gate))),
}


RESIDUAL_ACTIVATIONS: dict[ResidualActivation, Pointwise] = {None: lambda y: y, "relu": F.relu}


class Gradients(NamedTuple):
    """What :func:`backward` returns; what was not given has gradient ``None``."""

    dx: Tensor
    dreduce_weight: Tensor
    dexpand_weight: Tensor
    dreduce_bias: Tensor | None
    dexpand_bias: Tensor | None
    dresidual: Tensor | None = None


class Stages(NamedTuple):
    """What lies between x and the gate, in the dtype of the sums."""

    pooled: Tensor
    z1: Tensor
    hidden: Tensor
    gate: Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def excite(
    x: Tensor,
    reduce_weight: Tensor,
    expand_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_bias: Tensor | None,
    activation: Activation,
    gate: Gate,
    acc: torch.dtype,
) -> Stages:
    """The stages before the products with x; to be called under :func:`as_written`."""

    def cast(bias: Tensor | None) -> Tensor | None:
        return None if bias is None else bias.to(acc)

    pooled = x.mean(dim=tuple(range(2, x.dim())), dtype=acc)
    z1 = F.linear(pooled, reduce_weight.flatten(1).to(acc), cast(reduce_bias))
    hidden = ACTIVATIONS[activation][0](z1)
    z2 = F.linear(hidden, expand_weight.flatten(1).to(acc), cast(expand_bias))
    return Stages(pooled, z1, hidden, GATES[gate][0](z2))


def as_written(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast off: the formulas choose their own dtypes."""
    if torch.amp.autocast_mode.is_autocast_available(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def _over_space(channels: Tensor, x: Tensor) -> Tensor:
    """``[N, C]`` as ``[N, C, 1, ...]``, to be broadcast over the spatial dimensions of x."""
    return channels.reshape(*channels.shape, *([1] * (x.dim() - 2)))


def forward(
    x: Tensor,
    reduce_weight: Tensor,
    expand_weight: Tensor,
    reduce_bias: Tensor | None = None,
    expand_bias: Tensor | None = None,
    activation: Activation = "relu",
    gate: Gate = "sigmoid",
    acc_dtype: torch.dtype | None = None,
    *,
    residual: Tensor | None = None,
    residual_activation: ResidualActivation = None,
) -> Tensor:
    """``y = x * gate(W2 act(W1 mean(x) + b1) + b2)`` in plain PyTorch operations.

    With a residual, ``y = residual_activation(x * gate + residual)``.

    Args:
        x: ``[N, C, *spatial]``, any floating dtype and strides.
        reduce_weight, expand_weight: ``[R, C]`` and ``[C, R]``, trailing 1s allowed.
        reduce_bias, expand_bias: ``[R]`` and ``[C]``, or None.
        acc_dtype: of the sums and of everything of size [N, C]; by default float32 (float64 for
            float64), as in the kernels. With ``x.dtype`` this is what plain PyTorch computes in
            that dtype.
    """
    acc = acc_dtype or accumulation_dtype(x.dtype)
    with as_written(x):
        stages = excite(
            x, reduce_weight, expand_weight, reduce_bias, expand_bias, activation, gate, acc
        )
        return scale(x, stages.gate, residual, residual_activation)


def scale(
    x: Tensor, gate: Tensor, residual: Tensor | None, residual_activation: ResidualActivation
) -> Tensor:
    """The end of :func:`forward`, from the gate on."""
    y = x * _over_space(gate, x)
    if residual is not None:
        y = RESIDUAL_ACTIVATIONS[residual_activation](y + residual)
    return y.to(x.dtype)


def gate_values(
    x: Tensor,
    reduce_weight: Tensor,
    expand_weight: Tensor,
    reduce_bias: Tensor | None = None,
    expand_bias: Tensor | None = None,
    activation: Activation = "relu",
    gate: Gate = "sigmoid",
) -> Tensor:
    """The gate of :func:`forward`, ``[N, C]``, in the dtype of the sums."""
    acc = accumulation_dtype(x.dtype)
    with as_written(x):
        return excite(
            x, reduce_weight, expand_weight, reduce_bias, expand_bias, activation, gate, acc
        ).gate


def backward(
    dy: Tensor,
    x: Tensor,
    reduce_weight: Tensor,
    expand_weight: Tensor,
    reduce_bias: Tensor | None = None,
    expand_bias: Tensor | None = None,
    activation: Activation = "relu",
    gate: Gate = "sigmoid",
    acc_dtype: torch.dtype | None = None,
    *,
    residual: Tensor | None = None,
    residual_activation: ResidualActivation = None,
) -> Gradients:
    """The gradients of :func:`forward`, written out; differentiable once more.

    ``dgate = sum(dy * x)``; ``dz2 = dgate * gate'``; ``dz1 = (W2^T dz2) * act'``;
    ``dpooled = W1^T dz1``; ``dx = dy * gate + dpooled / S``; ``dW2 = dz2^T hidden``;
    ``dW1 = dz1^T pooled``. With a residual, ``dresidual`` is dy, or 0 where the ReLU stopped it,
    and takes dy's place in all that follows.
    """
    acc = acc_dtype or accumulation_dtype(x.dtype)
    parameters = (reduce_weight, expand_weight, reduce_bias, expand_bias)
    if residual is not None and residual_activation == "relu":
        y = forward(x, *parameters, activation, gate, acc, residual=residual)
        dy = torch.where(y <= 0, 0.0, dy)
    with as_written(x):
        stages = excite(
            x, reduce_weight, expand_weight, reduce_bias, expand_bias, activation, gate, acc
        )
        dx, dreduce, dexpand, dz1, dz2 = gradients(
            dy, x, reduce_weight, expand_weight, stages, activation, gate
        )
        return Gradients(
            dx,
            dreduce.to(reduce_weight.dtype),
            dexpand.to(expand_weight.dtype),
            None if reduce_bias is None else dz1.sum(0).to(reduce_bias.dtype),
            None if expand_bias is None else dz2.sum(0).to(expand_bias.dtype),
            None if residual is None else dy,
        )


def gradients(
    dy: Tensor,
    x: Tensor,
    reduce_weight: Tensor,
    expand_weight: Tensor,
    stages: Stages,
    activation: Activation,
    gate: Gate,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, dW1, dW2, dz1 and dz2 of :func:`backward`; all but dx in the dtype of the sums."""
    acc = stages.gate.dtype
    positions = math.prod(x.shape[2:])
    dgate = (dy.to(acc) * x.to(acc)).sum(dim=tuple(range(2, x.dim())))
    dz2 = dgate * GATES[gate][1](stages.gate)
    dhidden = dz2 @ expand_weight.flatten(1).to(acc)
    dz1 = dhidden * ACTIVATIONS[activation][1](stages.z1)
    dpooled = dz1 @ reduce_weight.flatten(1).to(acc)
    dx = dy * _over_space(stages.gate, x) + _over_space(dpooled / positions, x)
    return (
        dx.to(x.dtype),
        (dz1.t() @ stages.pooled).reshape(reduce_weight.shape),
        (dz2.t() @ stages.hidden).reshape(expand_weight.shape),
        dz1,
        dz2,
    )


class PlainSEBlock(nn.Module):
    """The block that everyone pastes: the baseline in tests, benchmarks and examples.

    Args:
        input_channel: C, the channels of the input.
        ration: the reduction ratio; the squeeze has ``int(C * ration)`` channels.
    """

    def __init__(
        self,
        input_channel: int,
        ration: float,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        reduced = int(input_channel * ration)
        self.reduce = nn.Conv2d(input_channel, reduced, 1, bias=False, device=device, dtype=dtype)
        self.expand = nn.Conv2d(reduced, input_channel, 1, bias=False, device=device, dtype=dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the same shape."""
        x = F.adaptive_avg_pool2d(inputs, 1)
        x = F.relu(self.reduce(x))
        x = torch.sigmoid(self.expand(x))
        return inputs * x
