"""The layers: modules that hold the parameters and call :func:`seblock_cuda.squeeze_excitation`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seblock_cuda.functional import squeeze_excitation


class SEBlock(nn.Module):
    """The Squeeze-and-Excitation block (Hu et al., arXiv:1709.01507), fused.

    Same constructor, initial weights, ``state_dict`` keys and numbers as the block of two 1x1
    convolutions without bias that people paste (see :class:`seblock_cuda.reference.PlainSEBlock`):
    checkpoints move between the two in both directions. ``[R, C]`` and ``[R, C, 1]`` shaped weights
    load too.

    Args:
        input_channel: C, the channels of the input.
        ration: the reduction ratio, for example 1/16; the squeeze has ``int(C * ration)`` channels.

    Raises:
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
        super().__init__()
        reduced = int(input_channel * ration)
        if reduced < 1:
            raise ValueError(
                f"int(input_channel * ration) must be at least 1, got {reduced} "
                f"from input_channel {input_channel} and ration {ration}"
            )
        self.reduce = nn.Conv2d(input_channel, reduced, 1, bias=False, device=device, dtype=dtype)
        self.expand = nn.Conv2d(reduced, input_channel, 1, bias=False, device=device, dtype=dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """``[N, C, *spatial]`` to the same shape, dtype and layout."""
        return squeeze_excitation(inputs, self.reduce.weight, self.expand.weight)

    def extra_repr(self) -> str:
        return "activation=relu, gate=sigmoid"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in ("reduce", "expand"):
            key = f"{prefix}{name}.weight"
            weight = state_dict.get(key)
            if isinstance(weight, Tensor) and weight.dim() in (2, 3):
                state_dict[key] = weight.reshape(*weight.shape, *([1] * (4 - weight.dim())))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class SEResidual(SEBlock):
    """The end of a residual block in one pass: ``relu(SEBlock(inputs) + shortcut)``.

    Arguments, weights and ``state_dict`` are those of :class:`SEBlock`.
    """

    def forward(self, inputs: Tensor, shortcut: Tensor) -> Tensor:  # type: ignore[override]
        """Two tensors ``[N, C, *spatial]`` to one of the same shape, dtype and layout."""
        return squeeze_excitation(
            inputs,
            self.reduce.weight,
            self.expand.weight,
            residual=shortcut,
            residual_activation="relu",
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, residual_activation=relu"
