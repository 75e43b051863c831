"""The data that is timed: one workload as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.workloads import Workload
from seblock_cuda import reference

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
KINK = 0.25  # how far the sum before the last ReLU stays from 0: far above what rounding moves


@dataclass(frozen=True)
class Problem:
    """A workload with data.

    x, dy and residual are [N, C, H, W], reduce_weight [R, C, 1, 1], expand_weight [C, R, 1, 1]. All
    random, none zero: hardware runs faster on zeros. Gradients are wanted for all but dy. With a
    residual the layer is y = relu(x * gate + residual).
    """

    workload: Workload
    x: Tensor
    dy: Tensor
    reduce_weight: Tensor
    expand_weight: Tensor
    reduce_bias: Tensor | None = None  # [R]
    expand_bias: Tensor | None = None  # [C]
    residual: Tensor | None = None

    @classmethod
    def make(
        cls,
        workload: Workload,
        batch: int,
        dtype: torch.dtype,
        layout: str,
        device: torch.device,
        seed: int = 0,
        with_residual: bool = False,
    ) -> Problem:
        generator = torch.Generator(device).manual_seed(seed)

        def randn(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
            return (values * scale).to(dtype)

        c, r = workload.channels, workload.reduced
        plane = (workload.height, workload.width)
        # a mean of its own for every plane, so that the gates differ
        x = (randn(batch, c, *plane) + randn(batch, c, 1, 1)).contiguous(
            memory_format=LAYOUTS[layout]
        )
        dy = randn(batch, c, *plane).contiguous(memory_format=LAYOUTS[layout])
        weights = (randn(r, c, 1, 1, scale=c**-0.5), randn(c, r, 1, 1, scale=r**-0.5))
        biases = (randn(r, scale=0.5), randn(c, scale=0.5)) if workload.bias else (None, None)
        problem = cls(workload, x, dy, *weights, *biases)
        if with_residual:
            residual = randn(batch, c, *plane).contiguous(memory_format=LAYOUTS[layout])
            residual = _away_from_the_kink(residual, problem.branch(torch.float32))
            problem = cls(workload, x, dy, *weights, *biases, residual)
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
            "residual": self.residual,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def branch(self, dtype: torch.dtype) -> Tensor:
        """x * gate by the reference, everything in `dtype`; differentiable."""
        cast = {name: tensor.to(dtype) for name, tensor in self.inputs.items()}
        cast.pop("residual", None)
        names = (self.workload.activation, self.workload.gate)
        arguments = [cast.get(name) for name in ("x", "reduce_weight", "expand_weight")]
        biases = [cast.get(name) for name in ("reduce_bias", "expand_bias")]
        return reference.forward(*arguments, *biases, *names, acc_dtype=dtype)  # type: ignore


def _away_from_the_kink(residual: Tensor, branch: Tensor) -> Tensor:
    """The residual, moved where the sum is near 0: there rounding would decide the gradient."""
    total = branch + residual.float()
    near = total.abs() < KINK
    shift = torch.where(total < 0, -2 * KINK, 2 * KINK) * near
    return (residual.float() + shift).to(residual.dtype)
