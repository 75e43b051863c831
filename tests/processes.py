"""Several processes on this machine, joined by gloo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing


def run_on_ranks(work: Callable[[int, int, str], None], world: int, folder: Path) -> None:
    """Calls `work(rank, world, folder)` in `world` new processes; raises what one of them raises.

    `work` is a function of a module: the processes import it.
    """
    torch.multiprocessing.spawn(_start, (work, world, str(folder)), nprocs=world)


def _start(rank: int, work: Callable[[int, int, str], None], world: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = Path(folder) / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        work(rank, world, folder)
    finally:
        dist.destroy_process_group()
