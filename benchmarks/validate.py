"""The check of a provider's results before it is timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.precision import full_float32
from benchmarks.problems import Problem
from benchmarks.providers import Provider, plain


@dataclass(frozen=True)
class Bar:
    """What a problem's results are, and how far off they may be.

    For y and every gradient, the largest error against float64 may not exceed plain PyTorch's
    own in the same dtype: twice that in float32 and float64, where only the order of sums
    differs. A difference of a few units in the last place of the largest value passes in any
    case, as plain PyTorch may have been lucky: one in the narrow dtypes (what writing the
    result down costs), eight in the others (what the order of sums costs).

    Everybody is judged without TF32, or every float32 convolution on a GPU would be wrong.
    """

    problem: Problem
    expected: Mapping[str, Tensor]
    allowed: Mapping[str, float]

    @classmethod
    def of(cls, problem: Problem) -> Bar:
        expected = truth(problem)
        with full_float32():
            baseline = results(plain, problem)
        allowed = {name: _allowed(exact, baseline[name]) for name, exact in expected.items()}
        return cls(problem, expected, allowed)

    def faults(self, provider: Provider, slack: float = 1.0) -> list[str]:
        """What is wrong with a provider's results; an empty list if nothing is.

        The layout of y, and of the gradients of x and the residual, has to be that of x, unless
        there is slack.
        """
        with full_float32():
            actual = results(provider, self.problem)
        found = []
        for name, exact in self.expected.items():
            error, allowed = _largest(actual[name].double() - exact), slack * self.allowed[name]
            if not error <= allowed:  # also if the error is NaN
                found.append(f"{name} is off by {error:.2g}, {allowed:.2g} allowed")
        for name in ("y", "dx", "dresidual") if slack == 1 else ():
            if name in actual and actual[name].stride() != self.problem.x.stride():
                strides = f"{actual[name].stride()}, x has {self.problem.x.stride()}"
                found.append(f"{name} has strides {strides}")
        return found


def results(provider: Provider, problem: Problem) -> dict[str, Tensor]:
    """y, and the gradients of every input as `d<name>`."""
    y = provider(problem)
    inputs = problem.inputs
    gradients = torch.autograd.grad(y, list(inputs.values()), problem.dy)
    names = [f"d{name}" for name in inputs]
    return {"y": y.detach(), **dict(zip(names, gradients, strict=True))}


def truth(problem: Problem) -> dict[str, Tensor]:
    """The results in float64, by the reference."""

    def reference(exact: Problem) -> Tensor:
        y = exact.branch(torch.float64)
        return y if exact.residual is None else torch.relu(y + exact.residual)

    leaves = {
        name: tensor.detach().double().requires_grad_() for name, tensor in problem.inputs.items()
    }
    return results(reference, replace(problem, dy=problem.dy.double(), **leaves))


def _allowed(exact: Tensor, baseline: Tensor) -> float:
    wide = baseline.dtype in (torch.float32, torch.float64)
    factor, units = (2.0, 8) if wide else (1.0, 1)
    error = factor * _largest(baseline.double() - exact)
    return max(error, units * torch.finfo(baseline.dtype).eps * _largest(exact))


def _largest(values: Tensor) -> float:
    return values.abs().max().item()
