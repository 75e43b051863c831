"""The layers: modules that hold the parameters and call :func:`seblock_cuda.squeeze_excitation`.

Each is a plain module, with :class:`seblock_cuda.fused.FusedSE` mixed in.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from seblock_cuda.checks import check_channels, check_name
from seblock_cuda.fused import (
    PLAIN_BLOCK,
    FusedSE,
    Name,
    Operands,
    Recipe,
    name_of,
    run_fused,
)
from seblock_cuda.intact import Plain, in_place_of
from seblock_cuda.plain import PlainEffectiveSE, PlainSEResidual, PlainSqueezeExcitation
from seblock_cuda.reference import ACTIVATIONS, GATES, Gate, PlainSEBlock


class SELayer(FusedSE):
    """What the layers of this package share beyond that: they are made of 1x1 convolutions.

    ``[R, C]`` and ``[R, C, 1]`` shaped weights (of Linear and Conv1d) load into them. They take one
    to three spatial dimensions where the plain module takes two; of three dimensions the channels
    tell ``[C, H, W]``, which has no batch, from ``[N, C, L]``.
    """

    if TYPE_CHECKING:  # TorchScript would read them
        in_channels: int  # C
        squeeze_channels: int  # R

    def _describe(self, in_channels: int, squeeze_channels: int, recipe: Recipe) -> None:
        self.in_channels, self.squeeze_channels = in_channels, squeeze_channels
        self._read(recipe)

    def reset_parameters(self) -> None:
        """Draws weights anew, as the constructor does."""
        for name in self._recipe.projections:
            getattr(self, name).reset_parameters()

    def extra_repr(self) -> str:
        return f"{self.in_channels}, squeeze={self.squeeze_channels}, {super().extra_repr()}"

    def _call_plain(self, plain: Plain, *inputs: Tensor) -> Tensor:
        x = inputs[0]
        if isinstance(x, fx.Proxy) or x.dim() == 4 or (x.dim() == 3 and self._has_no_batch(x)):
            return plain(self, *inputs)
        flat = (tensor.flatten(2).unsqueeze(-1) for tensor in inputs)
        return plain(self, *flat).reshape(x.shape)

    def _call_with_other_rank(self, plain: Plain, operands: Operands, *inputs: Tensor) -> Tensor:
        if inputs[0].dim() == 3 and self._has_no_batch(inputs[0]):
            return self._call_op(operands, *(x.unsqueeze(0) for x in inputs)).squeeze(0)
        return self._call_op(operands, *inputs)

    def _has_no_batch(self, x: Tensor) -> bool:
        c = self.in_channels
        if x.shape[0] == x.shape[1] == c:
            raise ValueError(
                f"input must say whether it has a batch: {list(x.shape)} may be [C, H, W] or "
                f"[N, C, L] with C = {c}; give [1, C, H, W] or [N, C, L, 1]"
            )
        return x.shape[0] == c

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in self._recipe.projections:
            key = f"{prefix}{name}.weight"
            weight = state_dict.get(key)
            if isinstance(weight, Tensor) and weight.dim() in (2, 3):
                state_dict[key] = weight.reshape(*weight.shape, *([1] * (4 - weight.dim())))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class SEBlock(SELayer, PlainSEBlock):
    """The Squeeze-and-Excitation block (Hu et al., arXiv:1709.01507), fused.

    Same constructor, initial weights, ``state_dict`` keys and numbers as the block of two 1x1
    convolutions without bias that people paste (see :class:`seblock_cuda.reference.PlainSEBlock`):
    checkpoints move between the two in both directions. ``[R, C]`` and ``[R, C, 1]`` shaped weights
    load too.

    ``forward(inputs)`` takes ``[N, C, *spatial]`` with 1 to 3 spatial dimensions, or ``[C, H, W]``,
    and gives a tensor of the same shape, dtype and layout.

    Args:
        input_channel: C, the channels of the input.
        ration: the reduction ratio, for example 1/16; the squeeze has ``int(C * ration)`` channels.
            Both names are those of that block.

    Warns:
        UserWarning: `ration` is more than 1.

    Raises:
        TypeError: `input_channel` is no int, `ration` no number.
        ValueError: ``int(input_channel * ration)`` is less than 1.
    """

    def __init__(
        self,
        input_channel: int,
        ration: float,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_channels("input_channel", input_channel)
        if not isinstance(ration, Real):
            raise TypeError(f"ration must be a number, such as 1/16, got {ration!r}")
        reduced = int(input_channel * ration)
        if reduced < 1:
            raise ValueError(
                f"int(input_channel * ration) must be at least 1, got {reduced} "
                f"from input_channel {input_channel} and ration {ration}"
            )
        if ration > 1:
            warnings.warn(
                f"ration is a fraction, such as 1/16: {ration} makes {reduced} hidden channels for "
                f"{input_channel}",
                stacklevel=2,
            )
        super().__init__(input_channel, ration, device=device, dtype=dtype)
        self._describe(input_channel, reduced, PLAIN_BLOCK)

    forward = in_place_of(PlainSEBlock.forward, run_fused)


class SEResidual(SEBlock, PlainSEResidual):
    """The end of a residual block in one pass: ``relu(SEBlock(inputs) + shortcut)``.

    Arguments, weights and ``state_dict`` are those of :class:`SEBlock`; ``forward(inputs,
    shortcut)`` takes two tensors of one shape.
    """

    forward = in_place_of(PlainSEResidual.forward, run_fused)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, residual_activation=relu"


class SqueezeExcitation(SELayer, PlainSqueezeExcitation):
    """torchvision's ``SqueezeExcitation``, fused: its signature, initial weights and keys.

    ``forward(input)`` takes and gives what :class:`SEBlock` does.

    Args:
        input_channels: C, the channels of the input.
        squeeze_channels: R, the channels of the squeeze.
        activation: makes the activation; it has to compute one of those of
            :func:`seblock_cuda.squeeze_excitation`.
        scale_activation: makes the gate; likewise.

    Raises:
        TypeError: channels that are no int, an activation or gate that is no class or function.
        ValueError: fewer than one channel; the op has no such activation or gate.
    """

    def __init__(
        self,
        input_channels: int,
        squeeze_channels: int,
        activation: Callable[..., nn.Module] = nn.ReLU,
        scale_activation: Callable[..., nn.Module] = nn.Sigmoid,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_channels("input_channels", input_channels)
        check_channels("squeeze_channels", squeeze_channels)
        for argument, maker in (("activation", activation), ("scale_activation", scale_activation)):
            if not callable(maker) or isinstance(maker, nn.Module):
                raise TypeError(
                    f"{argument} must make a module when it is called, as the class nn.ReLU does, "
                    f"got {maker!r}"
                )
        super().__init__(
            input_channels,
            squeeze_channels,
            activation,
            scale_activation,
            device=device,
            dtype=dtype,
        )
        recipe = Recipe(
            "fc1",
            "fc2",
            _named("activation", self.activation, ACTIVATIONS),
            _named("scale_activation", self.scale_activation, GATES),
        )
        self._describe(input_channels, squeeze_channels, recipe)

    forward = in_place_of(PlainSqueezeExcitation.forward, run_fused)


def _named(argument: str, made: nn.Module, known: dict[Name, Any]) -> Name:
    name = name_of(made, known)
    if name is None:
        raise ValueError(f"{argument} must compute one of {', '.join(known)}, got {made}")
    return name


class EffectiveSE(SELayer, PlainEffectiveSE):
    """VoVNet's effective SE (Lee and Park, arXiv:1911.06667): one projection C to C, no squeeze.

    ``y = x * hardsigmoid(W mean(x) + b)``, with the keys ``fc.weight`` and ``fc.bias``. The op has
    two projections: the other one is the identity matrix, shared by all layers of one width. That
    costs another ``C^2`` multiplications per sample and the gradient of a matrix that nobody reads,
    on tensors without spatial dimensions; the passes over x stay as they are. ``forward(input)``
    takes and gives what :class:`SEBlock` does.

    Args:
        channels: C.
        gate: sigmoid, hardsigmoid or relu.

    Raises:
        TypeError: `channels` is no int.
        ValueError: fewer than one channel, an unknown gate.
    """

    def __init__(
        self,
        channels: int,
        gate: Gate = "hardsigmoid",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_channels("channels", channels)
        check_name("gate", gate, GATES)
        super().__init__(channels, gate, device=device, dtype=dtype)
        self._describe(channels, channels, Recipe("", "fc", "identity", gate))

    forward = in_place_of(PlainEffectiveSE.forward, run_fused)
