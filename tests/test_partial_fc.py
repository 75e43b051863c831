"""PartialFC: sharded over two processes it is the ArcFace softmax of one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from partial_fc import PartialFC, arcface, cosface
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.processes import run_on_ranks

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES, INPUTS, EMBEDDING, BATCH = 11, 6, 8, 12  # 11: the shards differ in size


def problem() -> tuple[nn.Linear, Tensor, Tensor]:
    """A network, images and labels, the same in every process; float64."""
    generator = torch.Generator().manual_seed(5)
    network = nn.Linear(INPUTS, EMBEDDING, dtype=torch.float64)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    images = torch.randn(BATCH, INPUTS, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    return network, images, labels


def unsharded(name: str, scale: float, margin: float) -> tuple[Tensor, list[Tensor], Tensor]:
    """Loss, gradients of the network and of the centres, by pytorch-metric-learning."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    make = {"arcface": losses.ArcFaceLoss, "cosface": losses.CosFaceLoss}[name]
    degrees = math.degrees(margin) if name == "arcface" else margin
    loss_function = make(CLASSES, EMBEDDING, margin=degrees, scale=scale)
    network, images, labels = problem()
    centres = PartialFC(CLASSES, EMBEDDING, seed=3).centres.detach().double()
    loss_function.W = nn.Parameter(centres.T.contiguous())
    loss = loss_function(network(images), labels)
    loss.backward()
    return loss.detach(), [w.grad for w in network.parameters()], loss_function.W.grad.T


def sharded(name: str, rank: int, world: int) -> tuple[Tensor, list[Tensor], Tensor]:
    network, images, labels = problem()
    ranks = {"rank": rank, "world": world, "seed": 3}
    margin_function = {"arcface": arcface, "cosface": cosface}[name]
    partial = PartialFC(
        CLASSES, EMBEDDING, scale=16, margin=0.3, margin_function=margin_function, **ranks
    ).double()
    model = DistributedDataParallel(network) if world > 1 else network
    loss = partial(model(images[rank::world]), labels[rank::world])
    loss.backward()
    return loss.detach(), [w.grad for w in network.parameters()], partial.centres.grad


def _save(rank: int, world: int, folder: str) -> None:
    for name in ("arcface", "cosface"):
        torch.save(sharded(name, rank, world), Path(folder) / f"{name}{rank}.pt")


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have written."""
    folder = tmp_path_factory.mktemp("ranks")
    run_on_ranks(_work, 2, folder)
    return folder


def _work(rank: int, world: int, folder: str) -> None:
    _save(rank, world, folder)
    _train(rank, world, folder)


def test_sharded_loss_and_gradients_are_those_of_the_whole_softmax(of_two: Path) -> None:
    for name in ("arcface", "cosface"):
        loss, gradients, centres = unsharded(name, scale=16, margin=0.3)
        parts = [torch.load(of_two / f"{name}{rank}.pt") for rank in range(2)]
        for part_loss, part_gradients, _ in parts:
            torch.testing.assert_close(part_loss, loss, rtol=1e-12, atol=0)
            torch.testing.assert_close(part_gradients, gradients, rtol=1e-10, atol=1e-12)
        together = torch.cat([part[2] for part in parts])
        torch.testing.assert_close(together, centres, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["arcface", "cosface"])
def test_one_process_is_the_whole_softmax(name: str) -> None:
    expected = unsharded(name, scale=16, margin=0.3)
    torch.testing.assert_close(sharded(name, 0, 1), expected, rtol=1e-10, atol=1e-12)


def test_arcface_beyond_its_range_and_at_its_ends() -> None:
    """The continuation where angle + margin exceeds pi, and finite slopes at cos = 1 and -1."""
    cosine = torch.tensor([-1.0, -0.99, -0.5, 0.0, 0.9, 1.0], dtype=torch.float64)
    cosine.requires_grad_()
    widened = arcface(cosine, 0.5)
    assert (widened.diff() > 0).all()
    assert (widened < cosine).all()
    widened.sum().backward()
    assert cosine.grad is not None and cosine.grad.isfinite().all()


def test_sampling_keeps_every_class_of_the_batch() -> None:
    torch.manual_seed(0)
    partial = PartialFC(1000, EMBEDDING, sample_rate=0.1)
    present = torch.tensor([999, 3, 3, 500])
    chosen = partial._choose(present)
    assert len(chosen) == 100 and len(chosen.unique()) == 100
    assert set(present.tolist()) <= set(chosen.tolist())
    everything = torch.arange(200)
    assert torch.equal(partial._choose(everything), everything)  # more than the rate: all of them


def test_sampling_changes_only_the_centres_that_it_uses() -> None:
    torch.manual_seed(0)
    partial = PartialFC(100, EMBEDDING, sample_rate=0.1)
    partial(torch.randn(4, EMBEDDING), torch.tensor([7, 7, 8, 9])).backward()
    gradient = partial.centres.grad
    assert gradient is not None
    touched = gradient.abs().sum(dim=1).nonzero().flatten()
    assert len(touched) == 10 and {7, 8, 9} <= set(touched.tolist())


def test_first_centres_do_not_depend_on_the_number_of_processes() -> None:
    whole = PartialFC(9001, 2, seed=4).centres
    parts = [PartialFC(9001, 2, seed=4, rank=rank, world=4).centres for rank in range(4)]
    assert torch.equal(torch.cat(parts), whole)


def _train(rank: int, world: int, folder: str) -> None:
    """Learns 40 classes from noisy copies of their prototypes with a tenth of the centres."""
    torch.manual_seed(0)
    prototypes = torch.randn(40, 16)
    network = nn.Linear(16, EMBEDDING)
    partial = PartialFC(
        40, EMBEDDING, sample_rate=0.1, scale=16, margin=0.2, rank=rank, world=world
    )
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD([*network.parameters(), *partial.parameters()], lr=0.5)
    torch.manual_seed(1 + rank)
    for _ in range(150):
        labels = torch.randint(40, (16,))
        optimizer.zero_grad()
        partial(model(prototypes[labels] + 0.1 * torch.randn(16, 16)), labels).backward()
        optimizer.step()
    shards: list[Tensor] = [torch.empty(20, EMBEDDING) for _ in range(world)]
    dist.all_gather(shards, partial.centres.detach())
    cosine = (
        nn.functional.normalize(network(prototypes)) @ nn.functional.normalize(torch.cat(shards)).T
    )
    right = (cosine.argmax(dim=1) == torch.arange(40)).float().mean().item()
    (Path(folder) / f"right{rank}").write_text(str(right))


def test_a_tenth_of_the_centres_trains(of_two: Path) -> None:
    right = [float((of_two / f"right{rank}").read_text()) for rank in range(2)]
    assert right[0] == right[1] >= 0.97


@pytest.mark.parametrize("rate", [0.0, 1.5])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"sample_rate must be in \(0, 1\], got"):
        PartialFC(10, EMBEDDING, sample_rate=rate)
