"""The demo's picture: two loss curves that coincide, and the gates that the network learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart with any colour vision.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#777777"


def draw(
    path: Path,
    losses: Mapping[str, Sequence[float]],
    control: Sequence[float],
    gates: Mapping[str, np.ndarray],
) -> None:
    """Writes the picture.

    Args:
        losses: the loss of every step, of "fused" and "plain".
        control: the same of the plain network whose first weights were moved by one unit in the last place.
        gates: per SE layer the mean gate of every class and channel, [classes, C].
    """
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = plt.figure(figsize=(14, 7), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(1, 1.35), wspace=0.04)
        curves, differences = left.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        _draw_losses(curves, losses)
        _draw_differences(differences, losses, control)
        axes = np.atleast_1d(right.subplots(len(gates), 1))
        for axis, (name, gate) in zip(axes, gates.items(), strict=True):
            image = _draw_gates(axis, name, gate)
        axes[-1].set_xlabel("channel, by the class that opens it widest")
        bar = right.colorbar(image, ax=list(axes), shrink=0.6, pad=0.02)
        bar.set_label("gate: 0 turns the channel off, 1 lets it through")
        right.suptitle("What SE learnt: the mean gate of every channel, digit by digit")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _draw_losses(axis: Axes, losses: Mapping[str, Sequence[float]]) -> None:
    axis.plot(losses["plain"], color=VERMILION, linewidth=4, alpha=0.55, label="plain SE")
    axis.plot(losses["fused"], color=BLUE, linewidth=1.1, label="fused SE")
    axis.set_yscale("log")
    axis.set_ylabel("training loss")
    axis.legend(frameon=False)
    axis.set_title("Same seed, same batches: the same training")


def _draw_differences(
    axis: Axes, losses: Mapping[str, Sequence[float]], control: Sequence[float]
) -> None:
    def difference(other: Sequence[float]) -> np.ndarray:
        apart = np.abs(np.subtract(other, losses["plain"]))
        return np.where(apart > 0, apart, np.nan)

    moved = "plain, its first weights moved\nby one unit in the last place"
    axis.plot(difference(control), ".", markersize=4, color=GREY, label=moved)
    axis.plot(difference(losses["fused"]), ".", markersize=4, color=BLUE, label="fused")
    axis.set_yscale("log")
    axis.set_xlabel("step")
    axis.set_ylabel("difference of loss\nto plain SE")
    axis.legend(frameon=False, fontsize=8, markerscale=2, loc="lower right")


def _draw_gates(axis: Axes, name: str, gate: np.ndarray) -> plt.cm.ScalarMappable:
    order = np.lexsort((-gate.max(axis=0), gate.argmax(axis=0)))
    image = axis.imshow(
        gate[:, order], cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest"
    )
    axis.set_title(f"{name}: {gate.shape[1]} channels", loc="left", fontsize=10)
    axis.set_yticks(range(len(gate)))
    axis.set_ylabel("digit")
    axis.tick_params(length=0)
    return image
