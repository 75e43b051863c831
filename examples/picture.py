"""The demo's picture: loss curves that coincide, and the gates that the network learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

# Okabe and Ito's colours, told apart with any colour vision.
BLUE, VERMILION, BLACK = "#0072B2", "#D55E00", "#000000"
UNTRAINED = 0.5  # the gate of an untrained layer, near enough


def draw(
    path: Path, losses: Mapping[str, Sequence[float]], gates: Mapping[str, np.ndarray]
) -> None:
    """Writes the picture.

    Args:
        losses: the loss of every step of the runs "fused", "plain" and "control".
        gates: per SE layer the mean gate of every class and channel, [classes, C].
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = plt.figure(figsize=(14, 7), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(1, 1.35), wspace=0.03)
        _draw_losses(left, losses)
        _draw_gates(right, gates)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _draw_losses(part: SubFigure, losses: Mapping[str, Sequence[float]]) -> None:
    part.suptitle(
        "The same training: the loss of every step,\nand how far it is from that of plain SE"
    )
    curves, differences = part.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    curves.plot(losses["plain"], color=VERMILION, linewidth=4.5, alpha=0.5, label="plain SE")
    curves.plot(losses["fused"], color=BLUE, linewidth=1.2, label="fused SE")
    curves.set(yscale="log", ylabel="training loss")
    curves.legend(frameon=False)

    plain = np.asarray(losses["plain"])
    for name, colour, marker, label in (
        ("fused", BLUE, "o", "fused SE"),
        ("control", BLACK, "x", "plain SE, first weights moved by one unit in the last place"),
    ):
        apart = np.abs(np.asarray(losses[name]) - plain)
        shown = np.where(apart > 0, apart, np.nan)  # 0 has no place on a log scale
        style = {"s": 9, "linewidths": 0.6 if marker == "x" else 0, "color": colour}
        differences.scatter(range(len(shown)), shown, marker=marker, label=label, **style)
    differences.set(yscale="log", xlabel="step", ylabel="difference\nto plain SE")
    differences.legend(
        frameon=False, fontsize=9, markerscale=2, loc="upper center", bbox_to_anchor=(0.5, -0.22)
    )


def _draw_gates(part: SubFigure, gates: Mapping[str, np.ndarray]) -> None:
    part.suptitle(
        "What SE learnt: the mean gate of every channel, digit by digit\n"
        "(white: 0.5, where gates start; every layer has its own scale)"
    )
    axes: list[Axes] = list(np.atleast_1d(part.subplots(len(gates), 1)))
    for axis, (name, gate) in zip(axes, gates.items(), strict=True):
        # by the class that opens a channel widest, within a class by how much its gates vary
        order = np.lexsort((-np.ptp(gate, axis=0), gate.argmax(axis=0)))
        reach = max(np.abs(gate - UNTRAINED).max(), 1e-3)
        image = axis.imshow(
            gate[:, order],
            cmap="PuOr_r",
            vmin=UNTRAINED - reach,
            vmax=UNTRAINED + reach,
            aspect="auto",
            interpolation="nearest",
        )
        axis.set_title(
            f"{name}: {gate.shape[1]} channels, gates {gate.min():.2f} to {gate.max():.2f}",
            loc="left",
            fontsize=10,
        )
        axis.set_yticks(range(len(gate)))
        axis.tick_params(length=0, labelsize=8)
        axis.set_ylabel("digit")
        bar = part.colorbar(image, ax=axis, pad=0.01, aspect=12)
        bar.set_label("down  ←  gate  →  up", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    axes[-1].set_xlabel("channel, sorted by the digit that opens it widest")
