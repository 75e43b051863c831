"""The layers as plain modules: what they are where the op cannot serve.

That is for torch.fx and TorchScript, which read a forward, and where the children are no longer
what the op computes. :class:`seblock_cuda.reference.PlainSEBlock` is the fourth of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seblock_cuda.reference import Gate, PlainSEBlock


class PlainSEResidual(PlainSEBlock):
    """The plain block at the end of a residual block, with the tail that follows it."""

    def forward(self, inputs: Tensor, shortcut: Tensor) -> Tensor:  # type: ignore[override]
        """Two tensors ``[N, C, H, W]`` to one of the same shape."""
        x = F.adaptive_avg_pool2d(inputs, 1)
        x = F.relu(self.reduce(x))
        x = torch.sigmoid(self.expand(x))
        return F.relu(inputs * x + shortcut)


class PlainSqueezeExcitation(nn.Module):
    """torchvision's layer.

    Args:
        input_channels: C, the channels of the input.
        squeeze_channels: R, the channels of the squeeze.
        activation: makes the activation.
        scale_activation: makes the gate.
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
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(input_channels, squeeze_channels, 1, device=device, dtype=dtype)
        self.fc2 = nn.Conv2d(squeeze_channels, input_channels, 1, device=device, dtype=dtype)
        self.activation = activation()
        self.scale_activation = scale_activation()

    def forward(self, input: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the same shape."""
        scale: Tensor = self.fc2(self.activation(self.fc1(self.avgpool(input))))
        scale = self.scale_activation(scale)
        return scale * input


class PlainEffectiveSE(nn.Module):
    """VoVNet's effective SE.

    Args:
        channels: C.
        gate: sigmoid, hardsigmoid or relu.
    """

    def __init__(
        self,
        channels: int,
        gate: Gate = "hardsigmoid",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1, device=device, dtype=dtype)
        self.gate = gate

    def forward(self, input: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the same shape."""
        z = self.fc(F.adaptive_avg_pool2d(input, 1))
        if self.gate == "sigmoid":
            z = torch.sigmoid(z)
        elif self.gate == "hardsigmoid":
            z = F.hardsigmoid(z)
        else:
            z = F.relu(z)
        return input * z
