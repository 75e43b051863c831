"""What the operator accepts, said in full sentences.

The operator itself checks the same conditions in C++ and refuses with a short message; the long one
is worked out here, after a refusal, so that a call that succeeds does not pay for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_name(argument: str, name: object, known: Iterable[str | None]) -> None:
    """Raises ValueError unless `name` is one of `known`."""
    known = list(known)
    if name not in known:
        raise ValueError(f"{argument} must be one of {', '.join(map(str, known))}, got {name!r}")


def check_channels(argument: str, channels: object) -> None:
    """Raises TypeError unless `channels` is an int, ValueError unless it is at least 1."""
    if not isinstance(channels, Integral) or isinstance(channels, bool):
        raise TypeError(f"{argument} must be an int, got {channels!r}")
    if channels < 1:
        raise ValueError(f"{argument} must be at least 1, got {channels}")


def check_arguments(
    x: Tensor,
    reduce_weight: Tensor,
    expand_weight: Tensor,
    reduce_bias: Tensor | None = None,
    expand_bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> None:
    """Raises TypeError, ValueError or (mixed devices) RuntimeError if the op cannot take these.

    Args:
        x: ``[N, C, *spatial]`` with 1 to 3 spatial dimensions, C >= 1 and spatial extents >= 1.
        reduce_weight, expand_weight: ``[R, C]`` and ``[C, R]``, trailing 1s allowed, R >= 1.
        reduce_bias, expand_bias: ``[R]`` and ``[C]``, or None.
        residual: of x's shape and dtype, or None.
    """
    parameters = {
        "reduce_weight": reduce_weight,
        "expand_weight": expand_weight,
        "reduce_bias": reduce_bias,
        "expand_bias": expand_bias,
    }
    _check_tensors(x, {**parameters, "residual": residual})
    _check_input(x)
    _check_dtypes(x, parameters)
    _check_shapes(x, reduce_weight, expand_weight, reduce_bias, expand_bias)
    if residual is not None:
        _check_residual(x, residual)


def _check_tensors(x: object, arguments: dict[str, Tensor | None]) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"input must be a Tensor, got {type(x).__name__}")
    for name, tensor in arguments.items():
        optional = not name.endswith("weight")
        if not isinstance(tensor, Tensor) and not (optional and tensor is None):
            expected = "a Tensor or None" if optional else "a Tensor"
            raise TypeError(f"{name} must be {expected}, got {type(tensor).__name__}")
        if isinstance(tensor, Tensor) and tensor.device != x.device:
            raise RuntimeError(
                f"{name} must be on the device of input, {x.device}, got {tensor.device}"
            )


def _check_input(x: Tensor) -> None:
    shape = list(x.shape)
    if x.dim() not in (3, 4, 5):
        raise ValueError(
            f"input must be [N, C, *spatial] with 1, 2 or 3 spatial dimensions, got {shape}"
        )
    if x.shape[1] == 0:
        raise ValueError(f"input must have at least one channel, got {shape}")
    if 0 in x.shape[2:]:
        raise ValueError(f"input must have no empty spatial dimension, got {shape}")


def _check_dtypes(x: Tensor, parameters: dict[str, Tensor | None]) -> None:
    if x.dtype not in DTYPES:
        known = ", ".join(dtype_name(dtype) for dtype in DTYPES)
        raise TypeError(f"input must be one of {known}, got {dtype_name(x.dtype)}")
    for name, tensor in parameters.items():
        if tensor is not None and tensor.dtype not in (x.dtype, torch.float32):
            expected = " or ".join(dict.fromkeys([dtype_name(x.dtype), "float32"]))
            raise TypeError(
                f"{name} must be {expected} to match input, got {dtype_name(tensor.dtype)}"
            )


def _check_shapes(
    x: Tensor,
    reduce_weight: Tensor,
    expand_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_bias: Tensor | None,
) -> None:
    c = x.shape[1]
    match = f"to match input {list(x.shape)}"
    if reduce_weight.dim() < 2 or reduce_weight.shape[1] != c or _wider(reduce_weight):
        raise ValueError(f"reduce_weight must be [R, {c}] {match}, got {list(reduce_weight.shape)}")
    r = reduce_weight.shape[0]
    if r == 0:
        raise ValueError(
            f"reduce_weight must be [R, {c}] with R at least 1, got {list(reduce_weight.shape)}"
        )
    if expand_weight.dim() < 2 or list(expand_weight.shape[:2]) != [c, r] or _wider(expand_weight):
        raise ValueError(
            f"expand_weight must be [{c}, {r}] {match} "
            f"and reduce_weight {list(reduce_weight.shape)}, got {list(expand_weight.shape)}"
        )
    for name, bias, length in (("reduce_bias", reduce_bias, r), ("expand_bias", expand_bias, c)):
        if bias is not None and list(bias.shape) != [length]:
            raise ValueError(f"{name} must be [{length}], got {list(bias.shape)}")


def _check_residual(x: Tensor, residual: Tensor) -> None:
    if residual.shape != x.shape:
        raise ValueError(
            f"residual must have input's shape {list(x.shape)}, got {list(residual.shape)}"
        )
    if residual.dtype != x.dtype:
        raise TypeError(
            f"residual must be {dtype_name(x.dtype)} to match input, "
            f"got {dtype_name(residual.dtype)}"
        )


def _wider(weight: Tensor) -> bool:
    """Whether dimensions beyond the first two are more than trailing 1s."""
    return any(size != 1 for size in weight.shape[2:])


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for torch.float32."""
    return str(dtype).removeprefix("torch.")
