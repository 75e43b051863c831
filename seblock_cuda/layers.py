"""The layers: modules that hold the parameters and call :func:`seblock_cuda.squeeze_excitation`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from seblock_cuda.functional import squeeze_excitation
from seblock_cuda.reference import ACTIVATIONS, GATES

Operands = tuple[Tensor, Tensor, "Tensor | None", "Tensor | None"]


class SELayer(nn.Module):
    """What the layers share: :meth:`operands` and :attr:`names` say what the op is called with.

    ``[R, C]`` and ``[R, C, 1]`` shaped weights (of Linear and Conv1d) load into 1x1 convolutions.
    """

    names: tuple[str, str]  # activation, gate
    _projections: tuple[str, ...] = ()

    def operands(self, inputs: Tensor) -> Operands:
        """Weights and biases of the op, for this input: W1, W2, b1, b2."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"activation={self.names[0]}, gate={self.names[1]}"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in self._projections:
            key = f"{prefix}{name}.weight"
            weight = state_dict.get(key)
            if isinstance(weight, Tensor) and weight.dim() in (2, 3):
                state_dict[key] = weight.reshape(*weight.shape, *([1] * (4 - weight.dim())))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class SEBlock(SELayer):
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

    names = ("relu", "sigmoid")
    _projections = ("reduce", "expand")

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

    def operands(self, inputs: Tensor) -> Operands:
        return self.reduce.weight, self.expand.weight, None, None

    def forward(self, inputs: Tensor) -> Tensor:
        """``[N, C, *spatial]`` to the same shape, dtype and layout."""
        return squeeze_excitation(inputs, self.reduce.weight, self.expand.weight)


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


class SqueezeExcitation(SELayer):
    """torchvision's ``SqueezeExcitation``, fused: its signature, initial weights and keys.

    Args:
        input_channels: C, the channels of the input.
        squeeze_channels: R, the channels of the squeeze.
        activation: makes the activation; it has to compute one of those of
            :func:`seblock_cuda.squeeze_excitation`.
        scale_activation: makes the gate; likewise.

    Raises:
        ValueError: the op has no such activation or gate.
    """

    _projections = ("fc1", "fc2")

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
        named = (name_of(self.activation, ACTIVATIONS), name_of(self.scale_activation, GATES))
        for argument, made, name, known in zip(
            ("activation", "scale_activation"),
            (self.activation, self.scale_activation),
            named,
            (ACTIVATIONS, GATES),
        ):
            if name is None:
                raise ValueError(f"{argument} must compute one of {', '.join(known)}, got {made}")
        self.names = (str(named[0]), str(named[1]))

    def operands(self, inputs: Tensor) -> Operands:
        return self.fc1.weight, self.fc2.weight, self.fc1.bias, self.fc2.bias

    def forward(self, input: Tensor) -> Tensor:
        """``[N, C, *spatial]`` to the same shape, dtype and layout."""
        activation, gate = self.names
        return squeeze_excitation(input, *self.operands(input), activation=activation, gate=gate)


class EffectiveSE(SELayer):
    """VoVNet's effective SE (Lee and Park, arXiv:1911.06667): one projection C to C, no squeeze.

    ``y = x * hardsigmoid(W mean(x) + b)``, with the keys ``fc.weight`` and ``fc.bias``. The op has
    two projections: the other one is the identity matrix, shared by all layers of one width. That
    costs another ``C^2`` multiplications per sample and the gradient of a matrix that nobody reads,
    on tensors without spatial dimensions; the passes over x stay as they are.

    Args:
        channels: C.
        gate: sigmoid, hardsigmoid or relu.
    """

    _projections = ("fc",)

    def __init__(
        self,
        channels: int,
        gate: str = "hardsigmoid",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if gate not in GATES:
            raise ValueError(f"gate must be one of {', '.join(GATES)}, got {gate!r}")
        self.fc = nn.Conv2d(channels, channels, 1, device=device, dtype=dtype)
        self.names = ("identity", gate)

    def operands(self, inputs: Tensor) -> Operands:
        return identity_for(self.fc.weight, inputs), self.fc.weight, None, self.fc.bias

    def forward(self, input: Tensor) -> Tensor:
        """``[N, C, *spatial]`` to the same shape, dtype and layout."""
        activation, gate = self.names
        return squeeze_excitation(input, *self.operands(input), activation=activation, gate=gate)


_identities: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}


def identity_for(weight: Tensor, inputs: Tensor) -> Tensor:
    """The identity matrix ``[C, C]`` beside a weight ``[C, C]``, kept for the next call.

    No buffer of the layer: that would be lost by ``to_empty``, and sent around by DDP. Under a
    compiler, a fake mode or the capture of a CUDA graph it is made on the spot.
    """
    c, dtype, device = weight.shape[0], weight.dtype, weight.device
    if (
        torch.compiler.is_compiling()
        or type(inputs) not in (Tensor, nn.Parameter)
        or torch.utils._python_dispatch._get_current_dispatch_mode() is not None
        or (device.type == "cuda" and torch.cuda.is_current_stream_capturing())
    ):
        return torch.eye(c, dtype=dtype, device=device)
    key = (c, dtype, device)
    if key not in _identities:
        with torch.inference_mode(False):
            _identities[key] = torch.eye(c, dtype=dtype, device=device)
    return _identities[key]


def name_of(function: Callable[[Tensor], Tensor], known: dict[str, Any]) -> str | None:
    """Which of the known activations or gates a function computes, found by its values.

    It must agree in float64 over -12 to 12 and far outside, in training and in evaluation.
    """
    if isinstance(function, nn.Module) and next(function.parameters(), None) is not None:
        return None
    grid = torch.linspace(-12, 12, 4801, dtype=torch.float64, device="cpu")
    z = torch.cat([grid, torch.tensor([-1e3, -50.0, 50.0, 1e3], dtype=torch.float64, device="cpu")])
    training = getattr(function, "training", False)
    try:
        with torch.no_grad():
            values = []
            for mode in (not training, training):
                if isinstance(function, nn.Module):
                    function.train(mode)
                values.append(function(z.clone()))
            for name, (formula, _) in known.items():
                expected = formula(z)
                if all(torch.allclose(v, expected, rtol=1e-12, atol=1e-12) for v in values):
                    return name
    except (RuntimeError, TypeError, ValueError):
        return None
    return None
