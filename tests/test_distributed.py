"""DDP and FSDP2 over two gloo processes give what one process gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from seblock_cuda import EffectiveSE, SEBlock, convert_se_modules
from tests.models import Block, SELayer

STEPS, SAMPLES = 3, 4


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), SEBlock(8, 1 / 4), EffectiveSE(8), SELayer(8), Block(8)
    )
    report = convert_se_modules(model, fuse_residual=True)
    assert len(report.converted) == 2 and len(report.having("tail fused")) == 1
    return model.eval()  # the statistics of a batch are each process's own


def batch(step: int) -> Tensor:
    return torch.randn(SAMPLES, 3, 8, 8, generator=torch.Generator().manual_seed(step))


def train(model: nn.Module, rank: int, processes: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(batch(step)[rank::processes]).square().mean().backward()
        optimizer.step()


def one_process() -> dict[str, Tensor]:
    model = network()
    train(model, 0, 1)
    return model.state_dict()


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        results: dict[str, Any] = {}
        model = DistributedDataParallel(network())
        train(model, rank, 2)
        results["ddp"] = model.module.state_dict()

        from torch.distributed.fsdp import fully_shard

        sharded = network()
        mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
        for layer in sharded:
            fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        train(sharded, rank, 2)
        results["fsdp2"] = {
            name: value.full_tensor() if hasattr(value, "full_tensor") else value
            for name, value in sharded.state_dict().items()
        }
        (entry,) = convert_se_modules(_sharded_layer(mesh))
        results["refusal"] = entry.reason
        if rank == 0:
            torch.save(results, f"{folder}/results.pt")
    finally:
        dist.destroy_process_group()


def _sharded_layer(mesh: Any) -> nn.Module:
    from torch.distributed.tensor import distribute_module

    return nn.Sequential(distribute_module(SELayer(), mesh))


def test_two_processes_are_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    expected = one_process()
    for how in ("ddp", "fsdp2"):
        assert list(results[how]) == list(expected)
        for name, value in expected.items():
            assert torch.allclose(results[how][name], value, rtol=1e-4, atol=1e-6), (how, name)
    assert "DTensor: sharded" in results["refusal"]
