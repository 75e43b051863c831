"""The processes of one training: torchrun starts them, torch.distributed joins them.

One process is the case without communication: every method then returns what it was given.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process's place among `world` processes."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # on this machine: the number of its GPU

    @classmethod
    def from_environment(cls) -> Ranks:
        """What torchrun has set; without it, one process."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        return cls(*(int(os.environ.get(name, default)) for name, default in zip(names, "010")))

    def join(self, device: torch.device) -> None:
        """Meets the others: gloo for tensors on the CPU, nccl for those on GPUs."""
        if self.world > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")

    def leave(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """The process that prints and writes."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether any process says so: all of them get the same answer. Does not wait for a GPU."""
        if self.world == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def sum(self, tensor: Tensor) -> Tensor:
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in the order of the ranks; on the others an empty list."""
        if self.world == 1:
            return [value]
        values = [None] * self.world if self.first else None
        dist.gather_object(value, values)
        return values or []
