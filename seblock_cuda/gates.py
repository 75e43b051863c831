"""What the gates do: recorded per layer and forward, and drawn as in the SE paper's analysis."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seblock_cuda import reference
from seblock_cuda.convert import recipe_of
from seblock_cuda.convert.report import Refused
from seblock_cuda.fused import PLAIN_BLOCK, FusedSE, Recipe, operands_of
from seblock_cuda.intact import Observer, Reading

Gates = dict[str, list[Tensor]]


@contextmanager
def record_gates(model: nn.Module) -> Iterator[Gates]:
    """Records the gate of every SE layer, at every forward, while the context is open.

    Fused layers, and layers that :func:`seblock_cuda.convert_se_modules` would convert, whatever
    hooks they have. The gate is worked out beside the forward, from the same input, in plain
    PyTorch: one more pass over it. What a checkpoint runs again in the backward is not recorded
    again. A layer at several places has a record for each; it counts where it is called from.
    Made for eager mode; a compiled model may not call the hooks.

    Args:
        model: any module around the layers.

    Yields:
        A dict from the layer's path to a list of ``[N, C]`` tensors, one per forward; float32
        (float64 for float64 input), on the input's device, without a graph.
    """
    record: Gates = {}
    places: dict[nn.Module, list[_Place]] = defaultdict(list)
    readings: dict[nn.Module, tuple[Recipe, Reading] | None] = {}
    for path, layer, holders in _layers(model, readings):
        places[layer].append((record.setdefault(path, []), holders))
    running = _Running()
    shared = [each for each in places.values() if len(each) > 1]
    handles = []
    try:
        for holder in {module for each in shared for _, holders in each for module in holders}:
            handles.append(holder.register_forward_pre_hook(running.begin))
            handles.append(holder.register_forward_hook(running, always_call=True))
        for layer, where in places.items():
            reading = readings[layer]
            assert reading is not None
            recorder = _Recorder(*reading, where, running.modules)
            handles.append(layer.register_forward_hook(recorder, with_kwargs=True))
        yield record
    finally:
        for handle in handles:
            handle.remove()


_Place = tuple[list[Tensor], "tuple[nn.Module, ...]"]  # its record, and what holds it


def _layers(
    module: nn.Module,
    readings: dict[nn.Module, tuple[Recipe, Reading] | None],
    path: str = "",
    holders: tuple[nn.Module, ...] = (),
) -> Iterator[tuple[str, nn.Module, tuple[nn.Module, ...]]]:
    """Path, layer and what holds it, once for every place; fills in how its gate is computed."""
    if module not in readings:
        readings[module] = _read(module)
    if readings[module] is not None:
        yield path, module, holders
        return
    for name, child in module._modules.items():
        if child is not None:
            below = f"{path}.{name}" if path else name
            yield from _layers(child, readings, below, (*holders, module))


def _read(module: nn.Module) -> tuple[Recipe, Reading] | None:
    if isinstance(module, FusedSE):
        return module._recipe, module._reading
    if isinstance(module, reference.PlainSEBlock):  # what a subclass does with the gate is its own
        recipe: Recipe | None = PLAIN_BLOCK
    else:
        try:
            recipe = recipe_of(module, hooks=False)
        except Refused:
            recipe = None
    return None if recipe is None else (recipe, Reading(module, recipe.projections))


class _Running(Observer):
    """Which of the modules that hold shared layers are running, outermost first."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []

    @property
    def begin(self) -> _Begin:
        return _Begin(self.modules)

    def __call__(self, module: nn.Module, *_: Any) -> None:
        while self.modules and self.modules.pop() is not module:
            pass


class _Begin(Observer):
    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules

    def __call__(self, module: nn.Module, _: Any) -> None:
        self.modules.append(module)


class _Recorder(Observer):
    """The forward hook of one layer."""

    def __init__(
        self, recipe: Recipe, reading: Reading, places: list[_Place], running: list[nn.Module]
    ) -> None:
        self.recipe, self.reading = recipe, reading
        self.places, self.running = places, running

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor
    ) -> None:
        if torch._C._current_graph_task_id() != -1:  # a checkpoint's second forward
            return
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        with torch.no_grad():
            gate = self._gate(layer, x.detach())
        if gate is not None:
            self._record().append(gate)

    def _record(self) -> list[Tensor]:
        """The record of the place that is called: most of what holds it is running."""

        def order(place: _Place) -> tuple[int, int]:
            record, holders = place
            return -sum(holder in self.running for holder in holders), len(record)

        return min(self.places, key=order)[0]

    def _gate(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        operands = operands_of(self.reading, layer, x, hooks=False)
        if operands is None:
            warnings.warn(
                f"the gate of {type(layer).__name__} is not recorded: {self.reading.reason(layer)}",
                stacklevel=2,
            )
            return None
        ranks = self.recipe.ranks
        if x.dim() not in ranks and x.dim() + 1 in ranks and len(x) == len(operands[1]):
            x = x.unsqueeze(0)  # there is no batch
        return reference.gate_values(x, *operands, self.recipe.activation, self.recipe.gate)


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
