"""The op as a function: :func:`squeeze_excitation`, and the autograd.Function that trains it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from seblock_cuda import _ops, reference
from seblock_cuda.checks import check_arguments, check_name
from seblock_cuda.reference import Activation, Gate, ResidualActivation

P = ParamSpec("P")
R = TypeVar("R")

# name -> the number that the op takes.
_ACTIVATIONS = {name: code for code, name in enumerate(reference.ACTIVATIONS)}
_GATES = {name: code for code, name in enumerate(reference.GATES)}


def names_of(activation: int, gate: int) -> tuple[Activation, Gate]:
    """The names of the op's numbers."""
    return tuple(_ACTIVATIONS)[activation], tuple(_GATES)[gate]


# by residual_activation, where there is a residual
_TAILS = {None: _ops.TAIL_ADD, "relu": _ops.TAIL_ADD_RELU}


class SEBlockFunction(torch.autograd.Function):
    """The layer over the ops ``seblock_cuda::se_forward`` and ``seblock_cuda::se_backward``.

    Saves x, the parameters, three small tensors (pooled [N, C], z1 [N, R], gate [N, C]) and, where
    a ReLU follows the residual, one bit per element that says where y is not positive: neither the
    residual nor y is kept. A backward that is itself differentiated goes through the formulas of
    :mod:`seblock_cuda.reference`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        reduce_weight: Tensor,
        expand_weight: Tensor,
        reduce_bias: Tensor | None,
        expand_bias: Tensor | None,
        residual: Tensor | None,
        activation: Activation,
        gate: Gate,
        tail: int,
    ) -> Tensor:
        parameters = (reduce_weight, expand_weight, reduce_bias, expand_bias)
        codes = (_ACTIVATIONS[activation], _GATES[gate], tail)
        y: Tensor
        y, *saved = _ops.se_forward(x, *parameters, residual, *codes)
        ctx.save_for_backward(x, *parameters, *saved)
        ctx.names, ctx.codes = (activation, gate), codes
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, reduce_weight, expand_weight, reduce_bias, expand_bias, *saved = ctx.saved_tensors
        weights = (reduce_weight, expand_weight)
        biases = (reduce_bias, expand_bias)
        tail = ctx.codes[2]
        dresidual = None if tail == _ops.TAIL_NONE else dy
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            if tail == _ops.TAIL_ADD_RELU:
                dy = dresidual = torch.where(_ops.unpack_mask(saved[-1], x), dy, 0.0)
            gradients = reference.backward(dy, x, *weights, *biases, *ctx.names)[:5]
        else:
            wanted = ctx.needs_input_grad[3:5]  # the biases'
            *gradients, masked_dy = _ops.se_backward(dy, x, *weights, *saved, *wanted, *ctx.codes)
            if tail == _ops.TAIL_ADD_RELU:
                dresidual = masked_dy
        return (*gradients, dresidual, None, None, None)


_apply = cast("Callable[..., Tensor]", SEBlockFunction.apply)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
    """What SEBlockFunction keeps, of a call of the op itself."""
    *tensors, _, activation, gate, tail = inputs
    saved = output[1:]
    ctx.save_for_backward(*tensors, *saved)
    ctx.mark_non_differentiable(*(tensor for tensor in saved if tensor is not None))
    ctx.names = names_of(activation, gate)
    ctx.codes = activation, gate, tail


def _gradients(ctx: Any, dy: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    return SEBlockFunction.backward(ctx, dy)


if _ops.load_error is None:
    # programs of torch.export and other graphs call the op itself, and are trained
    torch.library.register_autograd("seblock_cuda::se_forward", _gradients, setup_context=_keep)


def squeeze_excitation(
    input: Tensor,
    reduce_weight: Tensor,
    expand_weight: Tensor,
    reduce_bias: Tensor | None = None,
    expand_bias: Tensor | None = None,
    *,
    activation: Activation = "relu",
    gate: Gate = "sigmoid",
    residual: Tensor | None = None,
    residual_activation: ResidualActivation = None,
) -> Tensor:
    """Squeeze-and-Excitation: ``y = input * gate(W2 act(W1 mean(input) + b1) + b2)``.

    With a residual, the tail of a residual block in the same pass:
    ``y = residual_activation(input * gate + residual)``, rounded once.

    Hu et al., Squeeze-and-Excitation Networks, 2018 (arXiv:1709.01507). The mean is over space, the
    gate is one number per sample and channel. Sums and the two small products are float32 (float64
    for float64 input), whatever the storage dtype; the order of every sum is fixed, so the same
    input gives the same bits.

    Args:
        input: ``[N, C, *spatial]`` with 1, 2 or 3 spatial dimensions; float32, bfloat16, float16
            or float64. Contiguous and channels-last tensors are read where they lie, other
            strides cost one copy.
        reduce_weight, expand_weight: ``[R, C]`` and ``[C, R]``, or with trailing 1s (the weights
            of 1x1 convolutions), in input's dtype or float32.
        reduce_bias, expand_bias: ``[R]`` and ``[C]``, or None.
        activation: relu, silu, gelu, hardswish, leaky_relu or identity.
        gate: sigmoid, hardsigmoid or relu.
        residual: the shortcut, of input's shape and dtype, or None; in input's layout it is read
            where it lies.
        residual_activation: None or relu; only with a residual.

    Returns:
        A tensor of input's shape, dtype and layout.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: wrong shapes, an empty spatial extent, C = 0, R = 0, an unknown name.
        RuntimeError: tensors on different devices; a device that the build cannot serve.

    Under autocast nothing is cast: the output has input's dtype. Double backward and the transforms
    of ``torch.func`` go through the same formulas in plain PyTorch, and so do devices without
    kernels.
    """
    parameters = (reduce_weight, expand_weight, reduce_bias, expand_bias)
    try:
        if _kernels_serve(input):
            plain = residual is None and residual_activation is None
            tail = _ops.TAIL_NONE if plain else _TAILS[residual_activation]
            if torch.is_grad_enabled():
                tensors: tuple[Tensor | None, ...] = (input, *parameters, residual)
                if torch.compiler.is_compiling():
                    tensors = _distinct(tensors)
                return _apply(*tensors, activation, gate, tail)
            codes = (_ACTIVATIONS[activation], _GATES[gate], tail)
            y: Tensor = _ops.se_forward(input, *parameters, residual, *codes)[0]
            return y
    except (RuntimeError, TypeError, KeyError, AttributeError):
        _explain(input, *parameters, residual, activation, gate, residual_activation)
        raise  # nothing wrong with the arguments: the error stands
    _explain(input, *parameters, residual, activation, gate, residual_activation)
    return reference.forward(
        input,
        *parameters,
        activation,
        gate,
        residual=residual,
        residual_activation=residual_activation,
    )


def _distinct(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """The same tensors, none of them twice: a repeated one as a view.

    Of a tensor that a Function is given twice, torch.compile (2.11) keeps one gradient only.
    """
    distinct: list[Tensor | None] = []
    for tensor in tensors:
        repeated = tensor is not None and any(tensor is other for other in distinct)
        distinct.append(tensor.view_as(tensor) if repeated and tensor is not None else tensor)
    return tuple(distinct)


class use_fused_se:
    """Switches the kernels on or off: ``use_fused_se(False)`` runs every layer as plain PyTorch.

    A switch; a context manager, and a decorator of functions, that put back what was before. It is
    of the process, not of a thread. The modules and their parameters stay as they are. What
    torch.compile made before is made anew.

    Raises:
        TypeError: `enabled` is not a bool.
    """

    enabled = True

    def __init__(self, enabled: bool = True) -> None:
        if not isinstance(enabled, bool):
            kind = type(enabled).__name__
            raise TypeError(f"enabled must be a bool, as in @use_fused_se(False), got a {kind}")
        self._wanted, self._before = enabled, use_fused_se.enabled
        use_fused_se.enabled = enabled

    def __enter__(self) -> use_fused_se:
        return self

    def __exit__(self, *_: object) -> None:
        use_fused_se.enabled = self._before

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        use_fused_se.enabled = self._before  # to decorate switches nothing

        @wraps(function)
        def switched(*args: P.args, **kwargs: P.kwargs) -> R:
            with use_fused_se(self._wanted):
                return function(*args, **kwargs)

        return switched


def _kernels_serve(x: Tensor) -> bool:
    """Whether the op takes x: there are kernels, switched on, and no transform of torch.func is."""
    if not use_fused_se.enabled:
        return False
    on_device = _ops.load_error is None and (x.is_cpu or (x.is_cuda and _ops.BUILT_WITH_CUDA))
    if torch.compiler.is_compiling():
        return on_device and not torch.onnx.is_in_onnx_export()
    if torch._C._is_tracing():
        return False  # what is traced is saved, trained or exported as the formulas
    if not on_device:
        _warn_about_device(x.device.type)
        return False
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0


@cache
def _warn_about_device(device_type: str) -> None:
    """Says once per kind of device that plain PyTorch runs instead of kernels."""
    if device_type == "meta":
        return
    if _ops.load_error or device_type == "cuda":
        reason = _ops.load_error or _ops.cuda_unusable_reason()
    else:
        reason = f"there are kernels for cpu and cuda, not for {device_type}"
    warnings.warn(
        f"squeeze_excitation runs as plain PyTorch, correct but slower: {reason}", stacklevel=4
    )


def _explain(
    x: Tensor,
    reduce_weight: Tensor,
    expand_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_bias: Tensor | None,
    residual: Tensor | None,
    activation: Activation,
    gate: Gate,
    residual_activation: ResidualActivation,
) -> None:
    """Raises the error that says what is wrong with the arguments, if anything is."""
    check_name("activation", activation, _ACTIVATIONS)
    check_name("gate", gate, _GATES)
    check_name("residual_activation", residual_activation, _TAILS)
    check_arguments(x, reduce_weight, expand_weight, reduce_bias, expand_bias, residual)
    if residual is None and residual_activation is not None:
        raise ValueError(f"residual must be given with residual_activation {residual_activation!r}")
