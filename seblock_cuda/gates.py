"""What the gates do: recorded per layer and forward, and drawn as in the SE paper's analysis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seblock_cuda import reference
from seblock_cuda.convert import recipe_of
from seblock_cuda.convert_recipe import FusedSE, Recipe, Refused
from seblock_cuda.layers import SELayer

Gates = dict[str, list[Tensor]]

PLAIN = Recipe(("reduce",), ("expand",), "relu", "sigmoid", ranks=(3, 4, 5))


@contextmanager
def record_gates(model: nn.Module) -> Iterator[Gates]:
    """Records the gate of every SE layer, at every forward, while the context is open.

    Fused layers, and layers that :func:`seblock_cuda.convert_se_modules` would convert. The gate is
    worked out beside the forward, from the same input, in plain PyTorch: one more pass over it.
    Made for eager mode; a compiled model may not call the hooks.

    Args:
        model: any module around the layers.

    Yields:
        A dict from the layer's path to a list of ``[N, C]`` tensors, one per forward; float32
        (float64 for float64 input), on the input's device, without a graph.
    """
    record: Gates = {}
    handles = []
    try:
        for path, layer, reader in _layers(model):
            hook = _recorder(record.setdefault(path, []), reader)
            handles.append(layer.register_forward_hook(hook))
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module, SELayer]]:
    """Path, module, and the layer that says how its gate is computed."""
    if isinstance(model, SELayer):
        yield path, model, model
        return
    if isinstance(model, reference.PlainSEBlock):  # what a subclass does with the gate is its own
        yield path, model, FusedSE(model, PLAIN)
        return
    try:
        recipe = recipe_of(model)
    except Refused:
        return
    if recipe is not None:
        yield path, model, FusedSE(model, recipe)
        return
    for name, child in model.named_children():
        yield from _layers(child, f"{path}.{name}" if path else name)


def _recorder(gates: list[Tensor], reader: SELayer) -> Any:
    def record(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        x = inputs[0]
        with torch.no_grad():
            gates.append(reference.gate_values(x, *reader.operands(x), *reader.names))

    return record


def plot_gates(
    gates: Gates,
    labels: Tensor | Sequence[int] | None = None,
    *,
    names: Sequence[str] | None = None,
    file: str | Path | None = None,
) -> Any:
    """Draws the mean gate over the channels, one panel per layer and one line per class.

    As in section 7.2 of the SE paper (arXiv:1709.01507): early layers gate all classes alike, later
    ones by class. Needs matplotlib.

    Args:
        gates: what :func:`record_gates` recorded; the forwards of a layer are joined.
        labels: the class of each sample, in the order of the samples; without them one line.
        names: the names of the classes, by number.
        file: where to save the figure, if anywhere.

    Returns:
        The matplotlib Figure.

    Raises:
        ValueError: there is nothing to draw, or not one label per sample.
    """
    joined = {path: torch.cat(list(each)).float().cpu() for path, each in gates.items() if each}
    if not joined:
        raise ValueError("gates must hold at least one forward, got none")
    samples = len(next(iter(joined.values())))
    classes = torch.zeros(samples, dtype=torch.long) if labels is None else torch.as_tensor(labels)
    for path, values in joined.items():
        if len(values) != len(classes):
            raise ValueError(
                f"labels must be one per sample of {path}: {len(values)}, got {len(classes)}"
            )

    from matplotlib.figure import Figure

    columns = min(4, len(joined))
    rows = -(-len(joined) // columns)
    figure = Figure(figsize=(4 * columns, 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (path, values) in zip(panels, joined.items()):
        for label in sorted(set(classes.tolist())):
            name = None if labels is None else names[label] if names else str(label)
            panel.plot(values[classes.cpu() == label].mean(0).numpy(), label=name, linewidth=0.8)
        panel.set(title=path, xlabel="channel", ylabel="mean gate")
    for panel in panels[len(joined) :]:
        panel.remove()
    if labels is not None:
        panels[0].legend(fontsize="small")
    if file is not None:
        figure.savefig(file)
    return figure
