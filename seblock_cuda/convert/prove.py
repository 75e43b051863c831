"""Proves a recipe: the plain forward and the op on random inputs, in float64, all gradients too.

The probe works on a copy of the layer on the CPU, whose parameters are drawn anew and wide, so that
what goes into activation and gate covers both sides of all their bends. A layer on the meta device
is proved the same way.
"""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from seblock_cuda.convert.replace import fuse
from seblock_cuda.convert.report import Refused, one_line
from seblock_cuda.functional import use_fused_se
from seblock_cuda.fused import Recipe
from seblock_cuda.intact import VALUES
from seblock_cuda.reference import ACTIVATIONS, GATES, Activation, Gate, forward

# Sums in another order; PyTorch's derivative of hardsigmoid holds 1/6 in float32 in every dtype.
RESULT_TOLERANCE, GRADIENT_TOLERANCE = 1e-9, 1e-6
_SAMPLES = 24
_SPATIAL = {3: (7,), 4: (3, 2), 5: (3, 2, 2)}
# what every module has, and what differs between modules that are alike
_SHARED = {*nn.Module().__dict__, "_reading", "_tail"}
_VALUES = (*VALUES, type, Recipe)
_Z_SPREAD = 5.0  # standard deviation of what goes into activation and gate


class NotTaken(Refused):
    """The layer does not take an input of this shape."""


def own_copy(module: nn.Module) -> nn.Module:
    """A float64 copy on the CPU, of a module on any device, meta included.

    Raises:
        Refused: it cannot be copied.
    """
    try:
        own = copy.deepcopy(module, without_hooks(module))
        meta = any(tensor.is_meta for tensor in [*own.parameters(), *own.buffers()])
        own = own.to_empty(device="cpu") if meta else own.to("cpu")
        return own.requires_grad_(True).double()
    except Exception as error:
        raise Refused(f"it cannot be copied for a check: {one_line(error)}") from None


def without_hooks(module: nn.Module) -> dict[int, Any]:
    """A memo for deepcopy: the copy has no hooks."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    each = (child.__dict__[name] for child in module.modules() for name in hooks)
    return {id(held): OrderedDict() for held in each}


def spread_weights(own: nn.Module, paths: list[str]) -> None:
    """Draws the projections of a copy anew: z1 and z2 get a standard deviation of about 5."""
    generator = torch.Generator("cpu").manual_seed(0)
    size = 1.0  # rms of what comes in: pooled, then hidden
    with torch.no_grad():
        for path in paths:
            layer = own.get_submodule(path)
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
    own: nn.Module, paths: list[str], ranks: tuple[int, ...]
) -> tuple[tuple[Activation, Gate], tuple[int, ...]]:
    """The activation and gate whose numbers are those of the layer, and the ranks it takes.

    Raises:
        Refused: there are none.
    """
    layers = [own.get_submodule(path) for path in paths]
    weights: list[Any] = [layer.weight for layer in layers]
    biases: list[Any] = [layer.bias for layer in layers]
    activations = list(ACTIVATIONS)
    if len(layers) == 1:
        weights.insert(0, torch.eye(weights[0].shape[0], dtype=torch.float64, device="cpu"))
        biases.insert(0, None)
        activations = ["identity"]
    found: dict[int, tuple[Activation, Gate]] = {}
    refusals: list[Refused] = []
    for rank in ranks:
        x = sample_input(weights[0].shape[1], rank)
        try:
            with torch.no_grad():
                expected = _call(own, x)
            if expected.shape != x.shape:
                raise Refused(f"it makes {list(expected.shape)} of {list(x.shape)}")
        except Refused as refusal:
            refusals.append(refusal)
            continue
        for names in itertools.product(activations, GATES):
            operands: Any = (*weights, *biases, *names)
            if _distance(forward(x, *operands), expected) <= RESULT_TOLERANCE:
                found[rank] = names
                break
        else:
            refusals.append(Refused("its numbers are those of no activation and gate of the op"))
    if not found:
        raise min(refusals, key=lambda refusal: isinstance(refusal, NotTaken))
    names = next(iter(found.values()))
    return names, tuple(rank for rank in found if found[rank] == names)


def prove(module: nn.Module, recipe: Recipe) -> float:
    """The largest relative difference between a layer and the op, on a copy of the layer.

    Runs in training and in evaluation; compares the result, the gradient of the input and those of
    all parameters.

    Raises:
        Refused: something differs.
    """
    own = own_copy(module)
    spread_weights(own, recipe.projections)
    plain = type(own).forward
    fuse(own, recipe)
    weight: Tensor = own.get_submodule(recipe.projections[0]).weight  # type: ignore[assignment]
    differences = []
    for rank in recipe.ranks:
        x = sample_input(weight.shape[1], rank)
        for training in (True, False):
            own.train(training)
            differences.append(compare(lambda x: plain(own, x), own.forward, own, x))
    return max(differences)


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
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        y = _call(function, leaf)
        parameters = dict(holder.named_parameters())
        generator = torch.Generator("cpu").manual_seed(2)
        gradients = torch.autograd.grad(
            y, [leaf, *parameters.values()], _normal(y.shape, generator), materialize_grads=True
        )
    for name, buffer in holder.named_buffers():
        buffer.copy_(buffers[name])
    names = ["the gradient of the input", *(f"the gradient of {name}" for name in parameters)]
    return {"result": y.detach(), **dict(zip(names, gradients))}


def _call(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The function's result, if it is a tensor and x is as it was."""
    given = x * 1
    try:
        y: object = function(given)
    except Exception as error:
        raise NotTaken(f"its forward does not take {list(x.shape)}: {one_line(error)}") from None
    if not isinstance(y, Tensor):
        raise Refused(f"it returns a {type(y).__name__}, not a tensor")
    if not torch.equal(given, x):
        raise Refused("it changes its input in place")
    return y


def _distance(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    size = expected.abs().max().item()
    return (actual - expected).abs().max().item() / (size or 1.0)


def plain_state() -> ExitStack:
    """No autocast, inference mode or default device, and the caller's random numbers untouched."""
    stack = ExitStack()
    stack.enter_context(_disable_current_modes())
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.autocast("cpu", enabled=False))
    stack.enter_context(torch.device("cpu"))
    stack.enter_context(torch.random.fork_rng(devices=[]))
    stack.enter_context(use_fused_se(True))
    # what is compared is small: its threads would mostly wait for each other
    stack.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(1)
    return stack


def alike(module: nn.Module) -> Hashable:
    """The same for modules that are read and proved alike; None where that cannot be told.

    That is all that they hold, but for the numbers in their tensors.
    """
    parts: list[Any] = []
    for name, child in module.named_modules(remove_duplicate=False):
        of_torch = type(child).__module__.startswith("torch.nn.")
        for attribute, value in child.__dict__.items():
            if attribute in _SHARED or (of_torch and attribute.startswith("_")):
                continue
            if not isinstance(value, _VALUES):
                return None
            parts.append((attribute, value))
        tensors = (*child._parameters.items(), *child._buffers.items())
        shapes = [(key, None if t is None else tuple(t.shape)) for key, t in tensors]
        children = [(key, held is None) for key, held in child._modules.items()]
        parts.append((name, type(child), tuple(shapes), tuple(children)))
    key = tuple(parts)
    try:
        hash(key)
    except TypeError:
        return None
    return key
