"""A folder of images as training data: one folder per class or identity."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from data import ImageSet, Index, Source, mixed
from PIL import Image
from problem import Problem
from torch import Tensor
from torchvision import transforms
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

Bad = Literal["stop", "skip"]
Transform = Callable[[Image.Image], Tensor]
Sample = tuple[str, int]  # path and label

TEST_PART = 0.1
SIZES_READ = 200


class Images(ImageSet):
    """Image files, each augmented as (seed, epoch, index) say.

    Args:
        bad: for a file that is no image, "stop" gives a Problem in its place (see `collate`),
            "skip" the next image that can be read, with one warning per file.
    """

    def __init__(
        self, samples: Sequence[Sample], transform: Transform, *, seed: int, bad: Bad
    ) -> None:
        self.samples, self.transform, self.seed, self.bad = samples, transform, seed, bad
        self.warned: set[str] = set()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Index) -> tuple[Tensor, int] | Problem:
        epoch, number = index
        for offset in range(len(self.samples)):
            path, label = self.samples[(number + offset) % len(self.samples)]
            try:
                with Image.open(path) as file:
                    image = file.convert("RGB")
            except Exception as error:  # Pillow raises many kinds for broken files
                reason = f"{path} cannot be read as an image ({type(error).__name__}: {error})"
                if self.bad == "stop":
                    return Problem(
                        f"{reason}; remove it, or train without it: --bad-files skip --resume"
                    )
                if path not in self.warned:
                    self.warned.add(path)
                    warnings.warn(f"skipped: {reason}", stacklevel=2)
                continue
            torch.manual_seed(mixed(self.seed, epoch, number))
            return self.transform(image), label
        return Problem(f"none of the {len(self.samples)} images can be read")


def folder(path: Path, size: int, *, faces: bool, bad: Bad, seed: int, say: Any = print) -> Source:
    """`path/class/image`, or `path/train/class/image` with `path/val/class/image`.

    Without a val folder every tenth image of each class is kept for the test.

    Args:
        size: images are resized to size x size.
        faces: they are aligned, so nothing is cropped.
        say: where notes go.

    Raises:
        Problem: there is no such folder, or not two classes with images.
    """
    others: list[str] | None = None
    separate = (path / "train").is_dir() and (path / "val").is_dir()
    classes, samples = _scan(path / "train" if separate else path, bad, say)
    if separate:
        test_classes, test = _scan(path / "val", bad, say)
        if set(test_classes) <= set(classes):
            number = {name: label for label, name in enumerate(classes)}
            test = [(file, number[test_classes[label]]) for file, label in test]
        else:
            others = test_classes
        train = samples
    else:
        train, test = _split(samples, len(classes), seed)
    _note_sizes(samples, size, say)
    normalise = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    flip = transforms.RandomHorizontalFlip()
    if faces:
        resize = transforms.Resize((size, size))
        for_training, for_test = [resize, flip], [resize]
    else:
        for_training = [transforms.RandomResizedCrop(size), flip]
        for_test = [transforms.Resize(size * 8 // 7), transforms.CenterCrop(size)]
    return Source(
        Images(train, transforms.Compose(for_training + normalise), seed=seed, bad=bad),
        Images(test, transforms.Compose(for_test + normalise), seed=seed, bad=bad),
        classes,
        channels=3,
        size=size,
        other_classes=others,
    )


def _scan(root: Path, bad: Bad, say: Any) -> tuple[list[str], list[Sample]]:
    if not root.is_dir():
        raise Problem(f"--data: there is no folder {root}")
    try:
        names, numbers = find_classes(str(root))
    except FileNotFoundError:
        raise Problem(f"--data: {root} has no folders: one per class or identity") from None
    found = make_dataset(str(root), numbers, IMG_EXTENSIONS, allow_empty=True)
    used = {label for _, label in found}
    empty = [name for label, name in enumerate(names) if label not in used]
    if empty:
        text = f"{root}: {len(empty)} of {len(names)} class folders hold no images: " + ", ".join(
            empty[:10] + ["..."] * (len(empty) > 10)
        )
        if bad == "stop":
            raise Problem(f"{text}; remove them, or train without them: --bad-files skip")
        say(f"skipped: {text}")
    kept = [name for name in names if name not in set(empty)]
    if len(kept) < 2:
        raise Problem(
            f"{root}: two classes are needed, {len(kept)} of {len(names)} folders hold images"
        )
    renumbered = {numbers[name]: label for label, name in enumerate(kept)}
    return kept, [(file, renumbered[label]) for file, label in found]


def _split(samples: Sequence[Sample], classes: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """A tenth of every class for the test, at least one image; of a lone image nothing."""
    of_class: list[list[Sample]] = [[] for _ in range(classes)]
    for sample in samples:
        of_class[sample[1]].append(sample)
    generator = torch.Generator().manual_seed(mixed(seed, 1))
    train: list[Sample] = []
    test: list[Sample] = []
    for members in of_class:
        order = torch.randperm(len(members), generator=generator).tolist()
        count = min(max(1, round(TEST_PART * len(members))), len(members) - 1)
        test += [members[place] for place in sorted(order[:count])]
        train += [members[place] for place in sorted(order[count:])]
    return train, test


def _note_sizes(samples: Sequence[Sample], size: int, say: Any) -> None:
    """Says so if the images, or those of them that are looked at, are not all of one size."""
    sizes = set()
    for path, _ in samples[:: max(1, len(samples) // SIZES_READ)]:
        try:
            with Image.open(path) as file:
                sizes.add(file.size)
        except Exception:  # reported when it is to be used
            continue
    if len(sizes) > 1:
        small, large = ("x".join(map(str, end)) for end in (min(sizes), max(sizes)))
        say(f"images of different sizes, {small} to {large}: each is resized to {size}x{size}")
