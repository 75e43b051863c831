"""How good a network is: top-1 for classes; for identities, nearest centre and pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from ranks import Ranks
from sklearn.metrics import auc, roc_curve
from torch import Tensor

CLASSES = ("top1",)  # what is measured of logits
PAIRED = ("nearest_centre", "verification", "area")  # and of embeddings
PAIRS = 6000  # as many as LFW has
FOLDS = 10
CHUNK = 256  # embeddings compared with all centres at a time


@torch.no_grad()
def collect(
    forward: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """Outputs [N, D] and labels [N] of all processes' batches, on the first; none on others."""
    parts = [(forward(images).float().cpu(), labels.cpu()) for images, labels in batches]
    gathered = [part for parts_of_one in ranks.gather(parts) for part in parts_of_one]
    if not gathered:
        return torch.empty(0, 0), torch.empty(0, dtype=torch.long)
    outputs, labels = (torch.cat(column) for column in zip(*gathered, strict=True))
    return outputs, labels


def measure(
    names: tuple[str, ...], outputs: Tensor, labels: Tensor, centres: Tensor | None
) -> list[float]:
    """The figures `CLASSES` or `PAIRED`; NaN for what cannot be told.

    Args:
        centres: of the classes, [classes, D]; None if the labels are of other classes.
    """
    if names == CLASSES:
        return [_part(outputs.argmax(dim=1) == labels)]
    pairs = verification(outputs, labels)
    near = math.nan if centres is None else _part(nearest_centre(outputs, centres) == labels)
    return [near, pairs.accuracy if pairs else math.nan, pairs.area if pairs else math.nan]


def nearest_centre(embeddings: Tensor, centres: Tensor) -> Tensor:
    """The class [N] whose centre [D] is nearest by angle."""
    directions = F.normalize(centres).T  # the length of an embedding changes no order
    return torch.cat([(part @ directions).argmax(dim=1) for part in embeddings.split(CHUNK)])


def _part(right: Tensor) -> float:
    return right.float().mean().item()


@dataclass(frozen=True)
class Verification:
    """Whether two images are of one identity, told from the angle between their embeddings.

    accuracy is LFW's: each tenth of the pairs with the threshold that is best for the other nine.
    """

    accuracy: float
    area: float  # under the ROC curve
    false_positives: np.ndarray
    true_positives: np.ndarray


def verification(
    embeddings: Tensor, labels: Tensor, *, pairs: int = PAIRS, seed: int = 0
) -> Verification | None:
    """On `pairs` random pairs, half of them of one identity; None where no pairs can be made."""
    first, second, same = _pairs(labels.numpy(), pairs, np.random.default_rng(seed))
    if not same.any() or same.all():
        return None
    unit = F.normalize(embeddings)
    cosine = (unit[first] * unit[second]).sum(dim=1).double().numpy()
    false, true, _ = roc_curve(same, cosine)
    order = np.random.default_rng(seed).permutation(len(same))
    right = 0
    for fold in np.array_split(order, FOLDS):
        others = np.setdiff1d(order, fold, assume_unique=True)
        right += np.sum(
            (cosine[fold] >= _best_threshold(cosine[others], same[others])) == same[fold]
        )
    return Verification(right / len(same), float(auc(false, true)), false, true)


def _best_threshold(cosine: np.ndarray, same: np.ndarray) -> float:
    """The threshold with the most right decisions."""
    false, true, thresholds = roc_curve(same, cosine)
    positives = same.sum()
    return float(thresholds[np.argmax(true * positives - false * (len(same) - positives))])


def _pairs(
    labels: np.ndarray, count: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of random images and, for each, of another: half of its identity, half of others."""
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    groups = np.flatnonzero(sizes > 1)
    if len(groups) == 0 or len(sizes) < 2:
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, nothing.astype(bool)
    half = count // 2
    group = random.choice(groups, half)
    place = random.integers(sizes[group])
    other = (place + 1 + random.integers(sizes[group] - 1)) % sizes[group]
    alike = order[starts[group] + place], order[starts[group] + other]
    one = random.integers(len(labels), size=4 * half)
    two = random.integers(len(labels), size=4 * half)
    differ = np.flatnonzero(labels[one] != labels[two])[:half]
    first = np.concatenate([alike[0], one[differ]])
    second = np.concatenate([alike[1], two[differ]])
    return first, second, np.arange(len(first)) < half
