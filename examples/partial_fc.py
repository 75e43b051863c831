"""PartialFC: the softmax over very many classes, its centres divided among the processes.

An et al., Partial FC: Training 10 Million Identities on a Single Machine, arXiv:2010.05222. Every
process holds the centres of K / world classes and sees the embeddings of all processes. So only
embeddings [B, D] and three numbers per image travel, never the centres [K, D] or the logits [B, K].
With a sample rate below 1 each step uses the centres of the batch's own classes and a random part
of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 4096  # classes whose first centres come from one seed, however many processes there are


def arcface(cosine: Tensor, margin: float) -> Tensor:
    """cos(angle + margin), continued downwards where the angle leaves [0, pi - margin]."""
    sine = (1 - cosine * cosine).clamp_min(1e-12).sqrt()
    wider = cosine * math.cos(margin) - sine * math.sin(margin)
    beyond = cosine - margin * math.sin(margin)
    return torch.where(cosine >= math.cos(math.pi - margin), wider, beyond)


def cosface(cosine: Tensor, margin: float) -> Tensor:
    return cosine - margin


class _GatherRows(torch.autograd.Function):
    """[B, D] of every process to [world * B, D] on each.

    Backward sums what the processes, each with its own classes, found for the rows of this one,
    and multiplies by `world`: DistributedDataParallel will divide by it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: int) -> Tensor:
        ctx.world = world
        gathered = [torch.empty_like(rows) for _ in range(world)]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(ctx.world)[dist.get_rank()] * ctx.world, None


class _SumOverRanks(torch.autograd.Function):
    """The sum over the processes. All go on to compute the same loss from it: backward is 1."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class PartialFC(nn.Module):
    """Cross-entropy of `scale * margin_function(cos)` with sharded class centres.

    Args:
        classes: K, over all processes.
        embedding: D.
        sample_rate: the part of this process's centres that a step uses, in (0, 1]; 1 is exact.
        margin: in radians for `arcface`, in cosine for `cosface`.
        margin_function: changes the cosine of an image and its own class.
        rank, world: this process holds the classes [rank * K // world, (rank + 1) * K // world).
    """

    def __init__(
        self,
        classes: int,
        embedding: int,
        *,
        sample_rate: float = 1.0,
        scale: float = 64.0,
        margin: float = 0.5,
        margin_function: Callable[[Tensor, float], Tensor] = arcface,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < sample_rate <= 1:
            raise ValueError(f"sample_rate must be in (0, 1], got {sample_rate}")
        if classes < world:
            raise ValueError(f"classes must be at least the processes, {world}, got {classes}")
        self.sample_rate, self.scale, self.margin = sample_rate, scale, margin
        self.margin_function = margin_function
        self.world = world
        self.first, self.last = (place * classes // world for place in (rank, rank + 1))
        centres = _first_centres(self.first, self.last, embedding, seed)
        self.centres = nn.Parameter(centres)  # [last - first, D]

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """[B, D] and [B] of this process to the mean loss over the images of all processes."""
        if self.world > 1:
            embeddings = _GatherRows.apply(embeddings, self.world)
            everyones = [torch.empty_like(labels) for _ in range(self.world)]
            dist.all_gather(everyones, labels)
            labels = torch.cat(everyones)
        mine = (labels >= self.first) & (labels < self.last)
        local = torch.where(mine, labels - self.first, 0)
        centres = self.centres
        if self.sample_rate < 1:
            chosen = self._choose(local[mine])
            centres = centres[chosen]
            local = torch.searchsorted(chosen, local).clamp_max(len(chosen) - 1)

        cosine = F.normalize(embeddings) @ F.normalize(centres).T  # [world * B, classes here]
        own = cosine.gather(1, local[:, None])
        widened = torch.where(mine[:, None], self.margin_function(own, self.margin), own)
        logits = self.scale * cosine.scatter(1, local[:, None], widened)
        return self._cross_entropy(logits, torch.where(mine, self.scale * widened[:, 0], 0)).mean()

    def _choose(self, present: Tensor) -> Tensor:
        """Sorted local classes: those of the batch, and random others up to the sample rate."""
        size = len(self.centres)
        order = torch.rand(size, device=present.device)
        present = present.unique()
        order[present] = 2.0
        count = max(len(present), math.ceil(self.sample_rate * size))
        return order.topk(count).indices.sort().values

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """log sum exp minus the target, the sums over all processes' classes."""
        if self.world == 1:
            return logits.logsumexp(dim=1) - target
        largest = logits.detach().amax(dim=1)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        sums = (logits - largest[:, None]).exp().sum(dim=1)
        sums, target = _SumOverRanks.apply(torch.stack([sums, target]))
        return sums.log() + largest - target

    def extra_repr(self) -> str:
        return f"classes {self.first} to {self.last - 1}, sample_rate={self.sample_rate}"


def _first_centres(first: int, last: int, embedding: int, seed: int) -> Tensor:
    """The rows [first, last) of one random matrix that no process holds whole."""
    blocks = []
    for block in range(first // BLOCK, (last - 1) // BLOCK + 1):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + block)
        rows = torch.randn(BLOCK, embedding, generator=generator)
        start = block * BLOCK
        blocks.append(rows[max(first - start, 0) : last - start])
    return torch.cat(blocks)
