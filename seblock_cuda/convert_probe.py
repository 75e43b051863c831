"""Proves a recipe: the original and the op on random inputs, in float64, with all gradients.

The probe works on a copy of the layer on the CPU, whose parameters are drawn anew and wide, so that
what goes into activation and gate covers both sides of all their bends. A layer on the meta device
is proved the same way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from seblock_cuda.convert_recipe import FusedSE, Recipe, Refused
from seblock_cuda.reference import ACTIVATIONS, GATES, forward

# Sums in another order; PyTorch's derivative of hardsigmoid holds 1/6 in float32 in every dtype.
RESULT_TOLERANCE, GRADIENT_TOLERANCE = 1e-9, 1e-6
_SAMPLES = 24
_SPATIAL = {3: (7,), 4: (5, 3), 5: (3, 2, 2)}
_Z_SPREAD = 5.0  # standard deviation of what goes into activation and gate


def own_copy(module: nn.Module) -> nn.Module:
    """A float64 copy on the CPU, of a module on any device, meta included.

    Raises:
        Refused: it cannot be copied.
    """
    try:
        own = copy.deepcopy(module)
        meta = any(tensor.is_meta for tensor in [*own.parameters(), *own.buffers()])
        own = own.to_empty(device="cpu") if meta else own.to("cpu")
        return own.requires_grad_(True).double()
    except Exception as error:
        raise Refused(f"it cannot be copied for a check: {error}") from None


def spread_weights(own: nn.Module, paths: list[tuple[str, ...]]) -> None:
    """Draws the projections of a copy anew: z1 and z2 get a standard deviation of about 5."""
    generator = torch.Generator("cpu").manual_seed(0)
    size = 1.0  # rms of what comes in: pooled, then hidden
    with torch.no_grad():
        for path in paths:
            layer = own.get_submodule(".".join(path))
            weight: Tensor = layer.weight  # type: ignore[assignment]
            scale = _Z_SPREAD / (size * weight.shape[1] ** 0.5)
            weight.copy_(_normal(weight.shape, generator) * scale)
            if isinstance(layer.bias, Tensor):
                layer.bias.copy_(_normal(layer.bias.shape, generator))
            size = _Z_SPREAD * 0.7  # of a ReLU of it


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def sample_input(c: int, rank: int) -> Tensor:
    """``[N, C, *spatial]`` whose means over space are spread with standard deviation 1."""
    generator = torch.Generator("cpu").manual_seed(1)
    means = _normal((_SAMPLES, c, *([1] * (rank - 2))), generator)
    return means + 0.1 * _normal((_SAMPLES, c, *_SPATIAL[rank]), generator)


def find_names(
    own: nn.Module, paths: list[tuple[str, ...]], ranks: tuple[int, ...]
) -> tuple[str, str]:
    """The activation and gate whose numbers are those of the layer.

    Raises:
        Refused: there are none, or the layer does not take such inputs.
    """
    layers = [own.get_submodule(".".join(path)) for path in paths]
    weights: list[Any] = [layer.weight for layer in layers]
    biases: list[Any] = [layer.bias for layer in layers]
    activations = list(ACTIVATIONS)
    if len(layers) == 1:
        weights.insert(0, torch.eye(weights[0].shape[0], dtype=torch.float64, device="cpu"))
        biases.insert(0, None)
        activations = ["identity"]
    failures = []
    for rank in ranks:
        x = sample_input(weights[0].shape[1], rank)
        with _plain_state(), torch.no_grad():
            try:
                expected = own(x.clone())
            except Exception as error:
                failures.append(f"its forward does not take {list(x.shape)}: {_short(error)}")
                continue
            _check_tensor(expected)
            if expected.shape != x.shape:
                raise Refused(f"it makes {list(expected.shape)} of {list(x.shape)}")
            for activation in activations:
                for gate in GATES:
                    operands: Any = (*weights, *biases, activation, gate)
                    if _distance(forward(x, *operands), expected) <= RESULT_TOLERANCE:
                        return activation, gate
            failures.insert(0, "its numbers are those of no activation and gate of the op")
    raise Refused(failures[0])


def prove(own: nn.Module, recipe: Recipe) -> tuple[Recipe, float]:
    """The recipe with the ranks for which it is proved, and the largest relative difference.

    Runs in training and in evaluation; compares the result, the gradient of the input and those of
    all parameters.

    Raises:
        Refused: something differs.
    """
    paths = [path for path in (recipe.reduce, recipe.expand) if path]
    weight: Tensor = own.get_submodule(".".join(paths[0])).weight  # type: ignore[assignment]
    largest, proved, failure = 0.0, [], ""
    for rank in recipe.ranks:
        x = sample_input(weight.shape[1], rank)
        try:
            for training in (True, False):
                own.train(training)
                fused = FusedSE(own, replace(recipe, ranks=(rank,)))
                largest = max(largest, compare(own, fused, own, x))
        except Refused as reason:
            if len(recipe.ranks) == 1:
                raise
            failure = failure or str(reason)
            continue
        proved.append(rank)
    if not proved:
        raise Refused(failure)
    return replace(recipe, ranks=tuple(proved)), largest


def compare(
    original: Callable[[Tensor], Tensor],
    fused: Callable[[Tensor], Tensor],
    holder: nn.Module,
    x: Tensor,
) -> float:
    """The largest relative difference in result and gradients of two ways to run one module.

    Raises:
        Refused: it is too large, or the original does something else with such an input.
    """
    expected = _run(original, holder, x)
    actual = _run(fused, holder, x)
    largest = 0.0
    for name, value in expected.items():
        distance = _distance(actual[name], value)
        tolerance = RESULT_TOLERANCE if name == "result" else GRADIENT_TOLERANCE
        if not distance <= tolerance:
            raise Refused(f"its numbers differ: {name} by {distance:.2g} of the largest value")
        largest = max(largest, distance)
    return largest


def _run(function: Callable[[Tensor], Tensor], holder: nn.Module, x: Tensor) -> dict[str, Tensor]:
    buffers = {name: buffer.clone() for name, buffer in holder.named_buffers()}
    with _plain_state(), torch.enable_grad():
        leaf = x.clone().requires_grad_()
        given = leaf * 1
        try:
            y = function(given)
        except Exception as error:
            raise Refused(f"its forward does not take {list(x.shape)}: {_short(error)}") from None
        _check_tensor(y)
        if not torch.equal(given, x):
            raise Refused("it changes its input in place")
        parameters = dict(holder.named_parameters())
        generator = torch.Generator("cpu").manual_seed(2)
        gradients = torch.autograd.grad(
            y, [leaf, *parameters.values()], _normal(y.shape, generator), materialize_grads=True
        )
    for name, buffer in holder.named_buffers():
        buffer.copy_(buffers[name])
    names = ["the gradient of the input", *(f"the gradient of {name}" for name in parameters)]
    return {"result": y.detach(), **dict(zip(names, gradients))}


def _check_tensor(y: object) -> None:
    if not isinstance(y, Tensor):
        raise Refused(f"it returns a {type(y).__name__}, not a tensor")


def _distance(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    size = expected.abs().max().item()
    return (actual - expected).abs().max().item() / (size or 1.0)


def _plain_state() -> ExitStack:
    """No autocast, no inference mode, and the random numbers of the caller untouched."""
    stack = ExitStack()
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.autocast("cpu", enabled=False))
    stack.enter_context(torch.random.fork_rng(devices=[]))
    return stack


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:100] if lines else ''}"
