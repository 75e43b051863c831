"""The data and its batches: digits that are always there, here; a folder of images in folder.py.

What a step sees is a function of the seed and the step's number alone: the order of an epoch is
drawn from (seed, epoch), an image's augmentation from (seed, epoch, index). So a training that is
continued sees what it would have seen, and several processes see what one would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from problem import Problem
from ranks import Ranks
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

Index = tuple[int, int]  # epoch and number of an image; the test images are of epoch 0


@dataclass(frozen=True)
class Digits:
    """Images [N, 1, 8, 8], float32 with mean 0 and deviation 1; labels [N], 0 to 9."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @classmethod
    def load(cls) -> Digits:
        """Three quarters for training, a quarter for the test, every class alike."""
        pixels, labels = load_digits(return_X_y=True)
        images = pixels.reshape(-1, 1, 8, 8).astype(np.float32)
        split = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)
        mean, deviation = split[0].mean(), split[0].std()
        train_images, test_images = ((part - mean) / deviation for part in split[:2])
        tensors = (train_images, split[2], test_images, split[3])
        return cls(*(torch.from_numpy(part) for part in tensors))

    def to(self, device: torch.device) -> Digits:
        return Digits(*(tensor.to(device) for tensor in vars(self).values()))


class ImageSet(Dataset[Any], Sized):
    """(image, label) by `Index`."""


@dataclass(frozen=True)
class Source:
    """What `--data` names: sets of (image [channels, size, size], label), and their classes."""

    train: ImageSet
    test: ImageSet
    classes: Sequence[str]  # of the training
    channels: int
    size: int
    other_classes: Sequence[str] | None = None  # of the test, where they are others

    @property
    def test_classes(self) -> Sequence[str]:
        return self.other_classes or self.classes


class InMemory(ImageSet):
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Index) -> tuple[Tensor, Tensor]:
        return self.images[index[1]], self.labels[index[1]]


def digits(size: int = 8, channels: int = 1) -> Source:
    """The 1797 scans that scikit-learn ships, enlarged and repeated as the network needs it."""
    data = Digits.load()

    def fit(images: Tensor) -> Tensor:
        if size != 8:
            images = F.interpolate(images, (size, size), mode="bilinear")
        return images.repeat(1, channels, 1, 1)

    train = InMemory(fit(data.train_images), data.train_labels)
    test = InMemory(fit(data.test_images), data.test_labels)
    return Source(train, test, [str(digit) for digit in range(10)], channels, size)


class Batches(Sampler[list[Index]]):
    """The batches of this process from step `start` to `stop`; a last, smaller batch is dropped.

    Every process takes its part of one global order: together they see what one process would.
    """

    def __init__(
        self, length: int, batch: int, ranks: Ranks, *, seed: int, start: int, stop: int
    ) -> None:
        if batch % ranks.world:
            raise Problem(f"--batch-size {batch} is for all {ranks.world} processes: not divisible")
        if length < batch:
            raise Problem(
                f"--batch-size {batch} leaves no step to train: there are {length} images"
            )
        self.length, self.batch, self.ranks, self.seed = length, batch, ranks, seed
        self.start, self.stop = start, stop
        self.per_epoch = length // batch

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Index]]:
        known = -1
        for step in range(self.start, self.stop):
            epoch, place = divmod(step, self.per_epoch)
            if epoch != known:
                generator = torch.Generator().manual_seed(mixed(self.seed, epoch))
                order, known = torch.randperm(self.length, generator=generator).tolist(), epoch
            batch = order[place * self.batch : (place + 1) * self.batch]
            yield [(epoch, index) for index in batch[self.ranks.rank :: self.ranks.world]]


def mixed(*numbers: int) -> int:
    """One seed from several numbers; different numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def part_of(length: int, batch: int, ranks: Ranks) -> list[list[Index]]:
    """This process's part of a test set, in batches."""
    mine = [(0, index) for index in range(ranks.rank, length, ranks.world)]
    return [mine[start : start + batch] for start in range(0, len(mine), batch)]


def collate(items: list[Any]) -> Any:
    """A batch; or, where an image could not be read, the Problem, for the reader to handle."""
    return next((item for item in items if isinstance(item, Problem)), None) or default_collate(
        items
    )


def loader(
    dataset: ImageSet,
    batches: Sampler[list[Index]] | list[list[Index]],
    *,
    workers: int,
    pin: bool,
) -> DataLoader[Any]:
    start: Callable[[int], None] | None = _ignore_interrupt if workers else None
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=start,
        pin_memory=pin,
    )


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C is for the training process: it finishes its step and saves."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
