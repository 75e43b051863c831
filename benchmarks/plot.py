"""Draws a results folder: what each provider reaches of the copy's speed, scaling, whole steps.

    python -m benchmarks.plot benchmarks/results/cpu-20261123

Without a folder, the newest one of a GPU and of a CPU. Every picture is written as PNG and SVG
beside the data. A provider has the same colour everywhere (Okabe and Ito's, told apart with any
colour vision). What was not measured is not drawn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.model_table import Step, steps
from benchmarks.record import RESULTS, ModelRow, OpRow, newest, read_csv
from benchmarks.tables import OURS, RIVALS, Comparison, compare

LAYERS = (*OURS, *RIVALS)
COLOURS = {
    "fused": "#0072B2",
    "fused_graph": "#56B4E9",
    "plain": "#D55E00",
    "compile": "#E69F00",
    "compile_graph": "#009E73",
    "copy": "#000000",
}
LABELS = {
    "fused": "this layer",
    "fused_graph": "this layer in a CUDA graph",
    "plain": "plain PyTorch",
    "compile": "torch.compile",
    "compile_graph": "torch.compile in a CUDA graph",
    "copy": "copy of x",
}
DIRECTION_NAMES = {"forward": "forward", "backward": "backward", "both": "forward + backward"}
SWEEP_NAMES = {"sweep_n": "N", "sweep_c": "C", "sweep_s": "S"}
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "seblock_cuda",  # the same data make the same file
    "svg.fonttype": "none",
}


def draw_op(comparisons: Sequence[Comparison], title: str) -> Figure:
    """Horizontal bars: a group per layer, a panel per layout, 100% is the copy's speed."""
    layouts = sorted({str(item.row.layout) for item in comparisons})
    names = list(dict.fromkeys(item.name for item in comparisons))
    present = _present(comparisons)
    height = 1.6 + len(names) * (0.16 + 0.1 * len(present))
    figure, panels = plt.subplots(
        1, len(layouts), figsize=(6.5 * len(layouts), height), sharey=True, squeeze=False
    )
    for axes, layout in zip(panels[0], layouts):
        of_layout = {item.name: item for item in comparisons if item.row.layout == layout}
        for index, provider in enumerate(present):
            _bars(axes, [of_layout.get(name) for name in names], provider, index, len(present))
        axes.axvline(100, color=COLOURS["copy"], linewidth=1, label=LABELS["copy"])
        axes.set(title=layout, xlabel="% of the copy's speed", yticks=range(len(names)))
        axes.set_yticklabels(names)
        axes.set_ylim(len(names) - 0.4, -0.6)
    return _finish(figure, panels[0][0], title)


def _bars(
    axes: Axes, items: Sequence[Comparison | None], provider: str, index: int, count: int
) -> None:
    width = 0.8 / count
    places = [row + (index - (count - 1) / 2) * width for row in range(len(items))]
    values = [100 * item.of_copy_speed(provider) if item else float("nan") for item in items]
    axes.barh(places, values, width, color=COLOURS[provider], label=LABELS[provider])


def draw_scaling(comparisons: Sequence[Comparison], title: str) -> Figure:
    """Time over the bytes of x, both logarithmic: the floor on the left, the slope on the right."""
    sweeps = [sweep for sweep in SWEEP_NAMES if any(c.row.network == sweep for c in comparisons)]
    figure, panels = plt.subplots(
        1, len(sweeps), figsize=(5 * len(sweeps), 4.5), sharey=True, squeeze=False
    )
    for axes, sweep in zip(panels[0], sweeps):
        items = sorted(
            (item for item in comparisons if item.row.network == sweep),
            key=lambda item: item.x_bytes,
        )
        for provider in (*_present(items), "copy"):
            axes.plot(
                [item.x_bytes / 1e6 for item in items],
                [item.ms(provider) for item in items],
                marker="o",
                markersize=4,
                linestyle="--" if provider == "copy" else "-",
                color=COLOURS[provider],
                label=LABELS[provider],
            )
        axes.set(xscale="log", yscale="log", xlabel="MB of x", title=f"{SWEEP_NAMES[sweep]} varied")
    panels[0][0].set_ylabel("ms")
    return _finish(figure, panels[0][0], title)


def draw_model(found: Sequence[Step], title: str) -> Figure:
    """SE's share of the training step, plain and fused: a panel per layout and mode."""
    kinds = list(dict.fromkeys((step.mode, step.layout) for step in found))
    names = list(dict.fromkeys(step.network for step in found))
    figure, panels = plt.subplots(
        1, len(kinds), figsize=(4.5 * len(kinds), 4.5), sharey=True, squeeze=False
    )
    for axes, kind in zip(panels[0], kinds):
        here = {step.network: step for step in found if (step.mode, step.layout) == kind}
        for index, se in enumerate(("plain", "fused")):
            places = [place + (index - 0.5) * 0.38 for place in range(len(names))]
            shares = [100 * here[name].share(se) if name in here else 0 for name in names]
            axes.bar(places, shares, 0.38, color=COLOURS[se], label=LABELS[se])
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(title=", ".join(kind), xticks=range(len(names)))
        axes.set_xticklabels(names, rotation=35, ha="right")
    panels[0][0].set_ylabel("SE's share of the step, %")
    return _finish(figure, panels[0][0], title)


def _present(comparisons: Sequence[Comparison]) -> list[str]:
    return [name for name in LAYERS if any(name in item.times for item in comparisons)]


def _finish(figure: Figure, labelled: Axes, title: str) -> Figure:
    handles, labels = labelled.get_legend_handles_labels()
    figure.suptitle(title)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.set_layout_engine("constrained")
    return figure


def save(figure: Figure, path: Path) -> list[Path]:
    """PNG and SVG, without the date."""
    paths = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    figure.savefig(paths[0], dpi=110, metadata={"Software": None})
    figure.savefig(paths[1], metadata={"Date": None})
    plt.close(figure)
    return paths


def draw_folder(folder: Path) -> list[Path]:
    """Every picture that the folder has data for; the files written."""
    written = []
    with plt.rc_context(STYLE):
        items = _cold(
            compare(row for row in read_csv(folder / "op.csv", OpRow) if row.residual == 0)
        )
        for dtype, direction, cache in dict.fromkeys(map(_kind, items)):
            chosen = [item for item in items if _kind(item) == (dtype, direction, cache)]
            title = f"{DIRECTION_NAMES[direction]}, {dtype}, {cache} cache"
            name = f"op_{dtype}_{direction}_{cache}"
            written += save(draw_op(chosen, title), folder / name)
        items = _cold(compare(read_csv(folder / "scaling.csv", OpRow)))
        for kind in dict.fromkeys((*_kind(item), str(item.row.layout)) for item in items):
            dtype, direction, cache, layout = kind
            chosen = [item for item in items if (*_kind(item), item.row.layout) == kind]
            title = f"{DIRECTION_NAMES[direction]}, {dtype}, {layout}, {cache} cache"
            written += save(draw_scaling(chosen, title), folder / f"scaling_{'_'.join(kind)}")
        found = steps(read_csv(folder / "model.csv", ModelRow))
        if found:
            title = "What SE takes of a training step"
            written += save(draw_model(found, title), folder / "model")
    return written


def _cold(items: Sequence[Comparison]) -> list[Comparison]:
    """Those with a cold cache, if there are any."""
    return [item for item in items if item.row.cache == "cold"] or list(items)


def _kind(item: Comparison) -> tuple[str, str, str]:
    return item.row.dtype, str(item.row.direction), item.row.cache


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot")
    parser.add_argument("folder", type=Path, nargs="*", help="that a benchmark wrote")
    folders = parser.parse_args(argv).folder
    for folder in folders or filter(None, (newest(RESULTS, on_cpu) for on_cpu in (True, False))):
        for path in draw_folder(folder):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
