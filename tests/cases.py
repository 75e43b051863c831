"""What the tests share: shapes and what they cover, random problems, and the measure of error.

float64 is the truth. The bar is plain PyTorch in the same dtype: an error may not exceed its error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.workloads import Workload as Workload
from benchmarks.workloads import load as workloads  # noqa: F401
from seblock_cuda import reference

LOW_PRECISION = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *LOW_PRECISION, torch.float64]
LAYOUTS = ["nchw", "nhwc"]
# name -> residual_activation, where there is a residual
TAILS = {"add": None, "add_relu": "relu"}

# (N, C, spatial, R): what it covers
SHAPES = {
    "even": (2, 64, (8, 8), 4),
    "7x7": (3, 16, (7, 7), 3),  # planes that start between two vectors
    "1x1": (2, 24, (1, 1), 8),  # more than one plane per vector
    "primes": (3, 13, (5, 11), 7),
    "one": (1, 1, (1, 1), 1),
    "empty": (0, 8, (4, 4), 2),
    "many samples": (19, 8, (3, 3), 5),  # more than two groups of samples in the products
    "wide": (1, 520, (3, 3), 40),  # more than one chunk and several tiles in the products
    "1-D": (2, 12, (37,), 3),
    "3-D": (2, 8, (3, 4, 5), 2),
    "long plane": (1, 3, (71, 73), 2),  # a whole block per plane
    "several splits": (1, 8, (300, 301), 2),  # more than one block per sum
}


@dataclass
class Problem:
    """Random arguments of one layer."""

    x: Tensor
    dy: Tensor
    reduce_weight: Tensor
    expand_weight: Tensor
    reduce_bias: Tensor | None = None
    expand_bias: Tensor | None = None
    activation: str = "relu"
    gate: str = "sigmoid"
    residual: Tensor | None = None
    residual_activation: str | None = None
    names: tuple[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = (self.activation, self.gate)

    @property
    def parameters(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return self.reduce_weight, self.expand_weight, self.reduce_bias, self.expand_bias

    @property
    def tail(self) -> dict[str, Any]:
        """The keyword arguments of the residual."""
        return {"residual": self.residual, "residual_activation": self.residual_activation}


def in_layout(x: Tensor, layout: str) -> Tensor:
    """x with the strides of `layout`: nchw, or nhwc for any number of spatial dimensions."""
    return x.contiguous() if layout == "nchw" else x.movedim(1, -1).contiguous().movedim(-1, 1)


def make_problem(
    shape: tuple[int, int, tuple[int, ...], int],
    dtype: torch.dtype = torch.float32,
    layout: str = "nchw",
    *,
    weight_dtype: torch.dtype | None = None,
    bias: bool = False,
    activation: str = "relu",
    gate: str = "sigmoid",
    tail: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    outline: bool = False,
) -> Problem:
    """Random arguments; the mean of x differs by channel, so that the squeeze has work to do.

    With a `tail`, one of TAILS, there is a residual. An `outline` has shapes, strides and device,
    but no values: the same on every device, these are drawn on the CPU, and that takes its time.
    """
    n, c, spatial, r = shape
    random = torch.Generator().manual_seed(seed)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        if outline:
            return torch.empty(size, device=device)
        return torch.randn(*size, generator=random, dtype=torch.float64) * scale

    x = normal(n, c, *spatial) + normal(1, c, *([1] * len(spatial)))
    weights = weight_dtype or dtype
    return Problem(
        in_layout(x.to(device, dtype), layout),
        in_layout(normal(n, c, *spatial).to(device, dtype), layout),
        normal(r, c, scale=c**-0.5).to(device, weights),
        normal(c, r, scale=r**-0.5).to(device, weights),
        normal(r, scale=0.5).to(device, weights) if bias else None,
        normal(c, scale=0.5).to(device, weights) if bias else None,
        activation,
        gate,
        in_layout(normal(n, c, *spatial).to(device, dtype), layout) if tail else None,
        TAILS[tail] if tail else None,
    )


def workload_problem(
    workload: Workload,
    dtype: torch.dtype,
    layout: str,
    *,
    samples: int,
    spatial: tuple[int, ...] | None = None,
    weight_dtype: torch.dtype | None = None,
    tail: str | None = None,
    device: str = "cpu",
    outline: bool = False,
) -> Problem:
    """A row of the workload table with this batch, on whole planes or cut to `spatial`."""
    return make_problem(
        (
            samples,
            workload.channels,
            spatial or (workload.height, workload.width),
            workload.reduced,
        ),
        dtype,
        layout,
        weight_dtype=weight_dtype,
        bias=workload.bias,
        activation=workload.activation,
        gate=workload.gate,
        tail=tail,
        device=device,
        outline=outline,
    )


def _reference(problem: Problem, dtype: torch.dtype) -> dict[str, Tensor]:
    """y and all gradients, computed in `dtype` throughout."""

    def cast(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().to(dtype)

    parameters = [cast(tensor) for tensor in problem.parameters]
    x, dy = problem.x.detach().to(dtype), problem.dy.detach().to(dtype)
    tail = {**problem.tail, "residual": cast(problem.residual), "acc_dtype": dtype}
    y = reference.forward(x, *parameters, *problem.names, **tail)  # type: ignore[arg-type]
    gradients = reference.backward(dy, x, *parameters, *problem.names, **tail)  # type: ignore[arg-type]
    return named(y, gradients)


def truth(problem: Problem) -> dict[str, Tensor]:
    """The float64 results for these very inputs."""
    return _reference(problem, torch.float64)


def plain(problem: Problem) -> dict[str, Tensor]:
    """What plain PyTorch makes of them in the dtype of x, parameters cast to it as by autocast."""
    return _reference(problem, problem.x.dtype)


def named(y: Tensor, gradients: reference.Gradients) -> dict[str, Tensor]:
    results = {"y": y, **gradients._asdict()}
    return {name: tensor for name, tensor in results.items() if tensor is not None}


def rms(tensor: Tensor) -> float:
    return tensor.double().square().mean().sqrt().item()


def check_no_worse_than_plain(actual: dict[str, Tensor], problem: Problem) -> None:
    """Asserts for every result that its error against float64 (rms) is not above plain PyTorch's.

    float32 gets twice plain's error (another order of summation) and four units in the last place:
    in one small tensor either side may be lucky; tests/test_accuracy.py compares over many draws,
    without that slack. A correctly rounded result always passes. float64 has no truth beyond it:
    1e-13 of the result.
    """
    expected, baseline = truth(problem), plain(problem)
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert value.shape == expected[name].shape, name
        if value.numel() == 0:
            continue
        error = rms(value.double() - expected[name])
        plain_error = rms(baseline[name].double() - expected[name])
        size = rms(expected[name])
        allowed = {
            torch.float64: 1e-13 * size,
            torch.float32: 2 * plain_error + 2**-21 * size,
        }.get(value.dtype, max(plain_error, torch.finfo(value.dtype).eps / 2 * size))
        assert error <= allowed, (
            f"{name}: error {error:.3g}, plain PyTorch {plain_error:.3g}, allowed {allowed:.3g}"
        )
