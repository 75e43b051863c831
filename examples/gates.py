"""What SE learnt: the gates of every SE layer, per class."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seblock_cuda import record_gates


def se_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every SE layer, fused or not, by its name in the model."""
    with record_gates(model) as gates:
        return {name: model.get_submodule(name) for name in gates}


@torch.no_grad()
def class_gates(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: int,
    *,
    forward: Callable[[Tensor], Any] | None = None,
    total: Callable[[Tensor], Tensor] = lambda part: part,
) -> dict[str, np.ndarray]:
    """Per SE layer the gates' mean over the images of each class, [classes, C]; NaN without images.

    Args:
        classes: as many are recorded; images of further ones are left out.
        batches: images and labels.
        forward: runs the model on images; by default the model itself.
        total: sums over the processes that have seen parts of the images.
    """
    model.eval()
    sums: dict[str, Tensor] = {}
    counts = torch.zeros(classes)
    with record_gates(model) as gates:
        for images, labels in batches:
            (forward or model)(images)
            known = labels < classes
            labels = labels[known]
            counts += torch.bincount(labels.cpu(), minlength=classes)
            for name, forwards in gates.items():
                gate = forwards.pop()
                before = sums.get(name, gate.new_zeros(classes, gate.shape[1]))
                sums[name] = before.index_add(0, labels, gate[known])
    counts = total(counts)
    return {name: (total(part.cpu()) / counts[:, None]).numpy() for name, part in sums.items()}
