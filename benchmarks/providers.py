"""What is compared, on which data, and the check of its results before it is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.workloads import Workload
from seblock_cuda import reference, squeeze_excitation

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DIRECTIONS = ("forward", "backward", "both")


@dataclass(frozen=True)
class Problem:
    """A workload with data.

    x and dy are [N, C, H, W], reduce_weight [R, C, 1, 1], expand_weight [C, R, 1, 1]. All
    random, none zero: hardware runs faster on zeros. Gradients are wanted for x and every
    parameter.
    """

    workload: Workload
    x: Tensor
    dy: Tensor
    reduce_weight: Tensor
    expand_weight: Tensor
    reduce_bias: Tensor | None  # [R]
    expand_bias: Tensor | None  # [C]

    @classmethod
    def make(
        cls,
        workload: Workload,
        batch: int,
        dtype: torch.dtype,
        layout: str,
        device: torch.device,
        seed: int = 0,
    ) -> Problem:
        generator = torch.Generator(device).manual_seed(seed)

        def randn(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
            return (values * scale).to(dtype)

        c, r = workload.channels, workload.reduced
        plane = (workload.height, workload.width)
        # a mean of its own for every plane, so that the gates differ
        x = randn(batch, c, *plane) + randn(batch, c, 1, 1)
        dy = randn(batch, c, *plane)
        biases = (randn(r, scale=0.5), randn(c, scale=0.5)) if workload.bias else (None, None)
        problem = cls(
            workload,
            x.contiguous(memory_format=LAYOUTS[layout]),
            dy.contiguous(memory_format=LAYOUTS[layout]),
            randn(r, c, 1, 1, scale=c**-0.5),
            randn(c, r, 1, 1, scale=r**-0.5),
            *biases,
        )
        for tensor in problem.inputs.values():
            tensor.requires_grad_()
        return problem

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What gradients are taken of, by name."""
        named = {
            "x": self.x,
            "reduce_weight": self.reduce_weight,
            "expand_weight": self.expand_weight,
            "reduce_bias": self.reduce_bias,
            "expand_bias": self.expand_bias,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}


Provider = Callable[[Problem], Tensor]  # y, differentiable


def plain(problem: Problem) -> Tensor:
    """The block of 1x1 convolutions that models paste, with the row's activation and gate."""
    pooled = F.adaptive_avg_pool2d(problem.x, 1)
    z1 = F.conv2d(pooled, problem.reduce_weight, problem.reduce_bias)
    hidden = reference.ACTIVATIONS[problem.workload.activation][0](z1)
    z2 = F.conv2d(hidden, problem.expand_weight, problem.expand_bias)
    return problem.x * reference.GATES[problem.workload.gate][0](z2)


def fused(problem: Problem) -> Tensor:
    """This package."""
    return squeeze_excitation(
        problem.x,
        problem.reduce_weight,
        problem.expand_weight,
        problem.reduce_bias,
        problem.expand_bias,
        activation=problem.workload.activation,
        gate=problem.workload.gate,
    )


PROVIDERS: dict[str, Provider] = {"plain": plain, "fused": fused}


def direction_call(provider: Provider, problem: Problem, direction: str) -> Callable[[], object]:
    """What one timed call does: inference, backward alone, or a training step's both."""
    inputs = list(problem.inputs.values())
    if direction == "forward":
        return torch.no_grad()(lambda: provider(problem))
    if direction == "backward":
        y = provider(problem)
        return lambda: torch.autograd.grad(y, inputs, problem.dy, retain_graph=True)
    return lambda: torch.autograd.grad(provider(problem), inputs, problem.dy)


def copy_call(problem: Problem) -> Callable[[], object]:
    """The limit: x read once, written once, into memory that is already there."""
    source = problem.x.detach()
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def limit_bytes(x: Tensor, direction: str) -> int:
    """The least traffic: forward reads x and writes y; backward reads x and dy and writes dx."""
    return {"forward": 2, "backward": 3, "both": 5, "copy": 2}[direction] * x.numel() * x.itemsize


def results(provider: Provider, problem: Problem) -> dict[str, Tensor]:
    """y, and the gradients of every input as `d<name>`."""
    y = provider(problem)
    inputs = problem.inputs
    gradients = torch.autograd.grad(y, list(inputs.values()), problem.dy)
    names = [f"d{name}" for name in inputs]
    return {"y": y.detach(), **dict(zip(names, gradients, strict=True))}


def truth(problem: Problem) -> dict[str, Tensor]:
    """The results in float64, by the reference."""
    leaves = {
        name: tensor.detach().double().requires_grad_() for name, tensor in problem.inputs.items()
    }
    y = reference.forward(
        leaves["x"],
        leaves["reduce_weight"],
        leaves["expand_weight"],
        leaves.get("reduce_bias"),
        leaves.get("expand_bias"),
        activation=problem.workload.activation,
        gate=problem.workload.gate,
    )
    gradients = torch.autograd.grad(y, list(leaves.values()), problem.dy.double())
    return {"y": y.detach(), **{f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}}


def faults(provider: Provider, problem: Problem) -> list[str]:
    """What is wrong with a provider's results; empty if nothing is.

    For y and every gradient, the largest error against float64 may not exceed plain PyTorch's
    own in the same dtype: twice that in float32 and float64, where only the order of sums
    differs. A difference of a few units in the last place of the largest value passes in any
    case, as plain PyTorch may have been lucky: one in the narrow dtypes (what writing the
    result down costs), eight in the others (what the order of sums costs). The layout of y and
    dx has to be that of x.
    """
    expected = truth(problem)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        baseline = results(plain, problem)
    actual = results(provider, problem)
    dtype = problem.x.dtype
    factor, units = (2.0, 8) if dtype in (torch.float32, torch.float64) else (1.0, 1)
    found = []
    for name, exact in expected.items():
        error = _largest(actual[name].double() - exact)
        allowed = factor * _largest(baseline[name].double() - exact)
        allowed = max(allowed, units * torch.finfo(dtype).eps * _largest(exact))
        if not error <= allowed:  # also if the error is NaN
            found.append(f"{name} is off by {error:.2g}, {allowed:.2g} allowed")
    for name in ("y", "dx"):
        if actual[name].stride() != problem.x.stride():
            found.append(f"{name} has strides {actual[name].stride()}, x has {problem.x.stride()}")
    return found


def _largest(values: Tensor) -> float:
    return values.abs().max().item()
