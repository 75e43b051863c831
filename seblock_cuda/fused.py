"""A plain SE module that runs through the op: what is mixed into the layers of this package, and
into those of other libraries by :func:`seblock_cuda.convert_se_modules`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from seblock_cuda.functional import squeeze_excitation
from seblock_cuda.intact import Plain, Reading, is_traced, warn_once
from seblock_cuda.reference import Activation, Gate

Name = TypeVar("Name", bound=str)  # of an activation or of a gate
Operands = tuple[Tensor, Tensor, "Tensor | None", "Tensor | None"]


@dataclass(frozen=True)
class Recipe:
    """What the op needs to know of a layer.

    Attributes:
        reduce: the path of the first projection; empty if there is none.
        expand: the path of the second one.
        activation, gate: their names in the op.
        ranks: how many dimensions the input may have.
        adds_input: whether the input is added to the result.
    """

    reduce: str
    expand: str
    activation: Activation
    gate: Gate
    ranks: tuple[int, ...] = (4,)
    adds_input: bool = False

    @property
    def projections(self) -> list[str]:
        return [path for path in (self.reduce, self.expand) if path]


PLAIN_BLOCK = Recipe("reduce", "expand", "relu", "sigmoid")  # of reference.PlainSEBlock


def operands_of(
    reading: Reading, module: nn.Module, x: Tensor, hooks: bool = True
) -> Operands | None:
    """Weights and biases as the op takes them; None if the module is not what was read of it.

    Args:
        hooks: whether a hook on a part is a change.
    """
    tensors: Any = reading.operands(module, hooks)
    if tensors is None:
        return None
    if len(tensors) == 4:
        reduce, reduce_bias, expand, expand_bias = tensors
        return reduce, expand, reduce_bias, expand_bias
    expand, bias = tensors
    return identity_for(expand, x), expand, None, bias


class FusedSE(nn.Module):
    """A plain SE module that runs through the op, as long as it is what was read of it."""

    if TYPE_CHECKING:  # TorchScript would read them
        _recipe: Recipe
        _reading: Reading

    def _read(self, recipe: Recipe) -> None:
        self._recipe, self._reading = recipe, Reading(self, recipe.projections)

    def _call_op(self, operands: Operands, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        recipe = self._recipe
        return squeeze_excitation(
            x,
            *operands,
            activation=recipe.activation,
            gate=recipe.gate,
            residual=x if recipe.adds_input else shortcut,
            residual_activation=None if shortcut is None else "relu",
        )

    def _call_plain(self, plain: Plain, *inputs: Tensor) -> Tensor:
        """What the plain module makes of inputs that this layer takes."""
        return plain(self, *inputs)

    def _call_with_other_rank(self, plain: Plain, operands: Operands, *inputs: Tensor) -> Tensor:
        return self._call_plain(plain, *inputs)

    def _add_relu(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """``relu(self(x) + shortcut)``, in one pass where the op can; no hook is called."""
        recipe = self._recipe
        fits = shortcut.dtype == x.dtype and shortcut.shape == x.shape and x.dim() in recipe.ranks
        if fits and not recipe.adds_input:
            operands = operands_of(self._reading, self, x)
            if operands is not None:
                return self._call_op(operands, x, shortcut)
        return torch.relu(self.forward(x) + shortcut)

    def extra_repr(self) -> str:
        own = super().extra_repr()
        fused = f"activation={self._recipe.activation}, gate={self._recipe.gate}"
        return f"{own}, {fused}" if own else fused


def run_fused(layer: FusedSE, plain: Plain, *inputs: Tensor) -> Tensor:
    """The forward of a fused layer: the op, or the plain forward where the op is not the same."""
    x = inputs[0]
    if is_traced(x):
        return layer._call_plain(plain, *inputs)
    operands = operands_of(layer._reading, layer, x)
    if operands is None:
        warn_once(layer, layer._reading)
        return layer._call_plain(plain, *inputs)
    if torch._C._is_any_autocast_enabled() and not _fit(operands, *inputs):
        return layer._call_plain(plain, *inputs)
    try:
        if isinstance(x, Tensor) and x.dim() not in layer._recipe.ranks:
            return layer._call_with_other_rank(plain, operands, *inputs)
        return layer._call_op(operands, *inputs)
    except ValueError:
        expected = operands[1].shape[0]
        if x.dim() in (3, 4, 5) and x.shape[1] != expected:
            raise ValueError(
                f"input has {x.shape[1]} channels, this layer expects {expected}: {list(x.shape)}"
            ) from None
        raise


def _fit(operands: Operands, x: Tensor, *shortcut: Tensor) -> bool:
    """Whether the op takes these dtypes; plain PyTorch takes more of them under autocast."""
    weights = (tensor for tensor in operands if tensor is not None)
    return all(tensor.dtype in (x.dtype, torch.float32) for tensor in weights) and all(
        tensor.dtype == x.dtype for tensor in shortcut
    )


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


def name_of(function: Callable[[Tensor], Tensor], known: dict[Name, Any]) -> Name | None:
    """Which of the known activations or gates a function computes, found by its values.

    It must agree in float64 over -12 to 12 and far outside, in training and in evaluation.
    """
    if isinstance(function, nn.Module) and next(function.parameters(), None) is not None:
        return None
    training = getattr(function, "training", False)
    try:
        with _disable_current_modes(), torch.no_grad():
            z = torch.linspace(-12, 12, 4801, dtype=torch.float64, device="cpu")
            z = torch.cat([z, z.new_tensor([-1e3, -50.0, 50.0, 1e3])])
            values = []
            for mode in (not training, training):
                if isinstance(function, nn.Module):
                    function.train(mode)
                values.append(function(z.clone()))
            for name, (formula, _) in known.items():
                expected = formula(z)
                if all(torch.allclose(v, expected, rtol=1e-12, atol=1e-12) for v in values):
                    return name
    except Exception:  # it takes something else than one tensor
        return None
    return None
