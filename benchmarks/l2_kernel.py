"""A kernel that reads a buffer again and again in one launch: what stays in L2 comes from there."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # elements
SHIFT = 97  # blocks between two reads of one program: never the block that its L1 has


@triton.jit
def reread_kernel(  # type: ignore[no-untyped-def]
    values, sums, blocks, REPEATS: tl.constexpr, BLOCK: tl.constexpr, SHIFT: tl.constexpr
):
    """Program i reads blocks i, i + SHIFT, i + 2 SHIFT, ..., and leaves their sums."""
    position = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for repeat in range(REPEATS):
        block = (position + repeat * SHIFT) % blocks
        total += tl.load(values + block * BLOCK + lanes, cache_modifier=".cg")
    tl.store(sums + position, tl.sum(total, axis=0))


def reread(values: Tensor, repeats: int) -> Tensor:
    """Sums [blocks], float32; reads every element (of whole blocks) `repeats` times."""
    blocks = values.numel() // BLOCK
    sums = torch.empty(blocks, device=values.device, dtype=torch.float32)
    reread_kernel[(blocks,)](values, sums, blocks, repeats, BLOCK, SHIFT)
    return sums
