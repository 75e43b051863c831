"""Kernels broken on purpose: what is replaced in csrc/cuda, and what the guard says then.

By the part that is broken: squeeze, products (the weight gradients among them), scale, drivers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.simt import kernels, mutants

Shape = tuple[int, int, tuple[int, ...], int]

EVEN: Shape = (2, 32, (8, 8), 5)
BORDERS: Shape = (3, 24, (9, 9), 5)  # planes that start between two vectors
SMALL: Shape = (2, 200, (7, 7), 5)  # planes of few vectors, in several rounds
CHUNKS: Shape = (3, 8, (50, 50), 5)  # several warps to a plane
PARTS: Shape = (2, 8, (100, 100), 3)  # several blocks to a sum
ODD: Shape = (1, 13, (5, 11), 3)  # the tensor ends in the middle of a vector
TILES: Shape = (9, 264, (4, 4), 70)  # two groups of samples, several tiles of outputs
WIDE: Shape = (9, 520, (3, 3), 6)  # more inputs than shared memory holds
SAMPLES: Shape = (33, 16, (4, 4), 3)  # more than are in shared memory at a time
STRIPS: Shape = (3, 64, (24, 40), 8)  # several tasks to a sample
KEPT: Shape = (3, 64, (20, 20), 8)  # a sample fits in shared memory

# Strategy stream squeezes as little ahead as it can.
FORCED = {"stream": kernels.Forced(lag=1, blocks=4)}


@dataclass(frozen=True)
class Case:
    mutant: mutants.Mutant
    shape: Shape
    layout: str
    guard: Callable[..., str]
    message: str  # a part of what the guard says
    strategy: str


def case(
    name: str,
    driver: str,
    file: str,
    shape: Shape,
    layout: str,
    guard: Callable[..., str],
    message: str,
    *replacements: tuple[str, str],
) -> Case:
    mutant = mutants.Mutant(name, f"{driver}.cu", file, replacements)
    strategy = driver if driver in kernels.STRATEGIES else "split"
    return Case(mutant, shape, layout, guard, message, strategy)
