"""A small set of shapes for compute-sanitizer: layouts, dtypes, tails, forward and backward.

    compute-sanitizer --tool memcheck python -m tests.sanitized_shapes

Inputs are made and results are checked on the CPU, so that nothing runs on the GPU but copies and
this package's kernels: what the tool reports is theirs.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from seblock_cuda import explain, reference, squeeze_excitation
from tests import cases

FEW = ("7x7", "empty", "primes")
MORE_DTYPES = {"even": [torch.float16, torch.float64]}  # one shape each: their code is the same


def problems(few: bool) -> Iterator[tuple[str, cases.Problem]]:
    """Each shape with its label; the tails take turns, so that few shapes have all of them."""
    tails = itertools.cycle([None, *cases.TAILS])
    for name, shape in cases.SHAPES.items():
        if few and name not in FEW:
            continue
        for dtype in [torch.float32, torch.bfloat16, *MORE_DTYPES.get(name, [])]:
            for layout in cases.LAYOUTS:
                tail = next(tails)
                label = f"{name}, {str(dtype).removeprefix('torch.')}, {layout}, {tail}"
                yield label, cases.make_problem(shape, dtype, layout, bias=True, tail=tail)


def run(problem: cases.Problem, device: str) -> dict[str, Tensor]:
    """y and all gradients, computed on the device, on the CPU."""
    leaves = [
        None if tensor is None else tensor.to(device).requires_grad_()
        for tensor in (problem.x, *problem.parameters, problem.residual)
    ]
    y = squeeze_excitation(
        *leaves[:-1],  # type: ignore[arg-type]
        activation=problem.activation,
        gate=problem.gate,
        residual=leaves[-1],
        residual_activation=problem.residual_activation,
    )
    given = [leaf for leaf in leaves if leaf is not None]
    gradients = torch.autograd.grad(y, given, problem.dy.to(device))
    on_cpu = iter([gradient.cpu() for gradient in gradients])
    every = (None if leaf is None else next(on_cpu) for leaf in leaves)
    return cases.named(y.detach().cpu(), reference.Gradients(*every))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 if a result is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.sanitized_shapes")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--few", action="store_true", help="three shapes only")
    options = parser.parse_args(argv)
    strategies: Counter[str] = Counter()
    wrong = 0
    for label, problem in problems(options.few):
        if problem.x.numel():
            plans = explain(problem.x, problem.reduce_weight, **problem.tail)
            strategies.update([plans.forward.strategy, plans.backward.strategy])
        try:
            cases.check_no_worse_than_plain(run(problem, options.device), problem)
        except AssertionError as error:
            wrong += 1
            print(f"WRONG: {label}: {error}")
    covered = ", ".join(f"{name} {count}" for name, count in sorted(strategies.items()))
    print(f"{options.device}: {wrong} wrong; passes by strategy: {covered}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
