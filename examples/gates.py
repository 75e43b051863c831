"""What SE learnt: the gates of every SE layer, recorded while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# the names of the two projections: this package's and timm's
_PROJECTIONS = (("reduce", "expand"), ("fc1", "fc2"), ("conv_reduce", "conv_expand"))


def se_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every SE layer, by its name in the model."""
    return {name: layer for name, layer in model.named_modules() if _projections(layer)}


def _projections(layer: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    for reduce, expand in _PROJECTIONS:
        known = reduce == "reduce" or hasattr(layer, "gate")  # an Mlp has fc1 and fc2, too
        if known and isinstance(getattr(layer, reduce, None), nn.Conv2d):
            return getattr(layer, reduce), getattr(layer, expand)
    return None


@contextmanager
def record_gates(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yields a dict that holds, after each forward, the gates [N, C] of every SE layer.

    They are computed from the layer's input once more, in plain PyTorch.
    """
    gates: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def hook(layer: Any, inputs: tuple[Tensor, ...]) -> None:
            reduce, expand = _projections(layer)  # type: ignore[misc]
            activation = getattr(layer, "act", None) or getattr(layer, "act1", None) or F.relu
            gate = getattr(layer, "gate", None) or torch.sigmoid
            pooled = inputs[0].mean(dim=(2, 3), keepdim=True)
            gates[name] = gate(expand(activation(reduce(pooled)))).detach().float().flatten(1)

        return hook

    handles = [
        layer.register_forward_pre_hook(record(name)) for name, layer in se_layers(model).items()
    ]
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()


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
            for name, gate in gates.items():
                before = sums.get(name, gate.new_zeros(classes, gate.shape[1]))
                sums[name] = before.index_add(0, labels, gate[known])
    counts = total(counts)
    return {name: (total(part.cpu()) / counts[:, None]).numpy() for name, part in sums.items()}
