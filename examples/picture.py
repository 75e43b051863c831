"""Pictures: loss curves, the gates that a network learnt, its embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from evaluation import Verification
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

# Okabe and Ito's colours, told apart with any colour vision.
BLUE, VERMILION, BLACK = "#0072B2", "#D55E00", "#000000"
UNTRAINED = 0.5  # the gate of an untrained layer, near enough
DIGITS = [str(digit) for digit in range(10)]
LAYERS, CLASSES = 4, 20  # as many as can be told apart
LEAST_LOSS = 1e-4  # below it a loss is not worth the space


def draw(
    path: Path, losses: Mapping[str, Sequence[float]], gates: Mapping[str, np.ndarray]
) -> None:
    """Writes the demo's picture.

    Args:
        losses: the loss of every step of the runs "fused", "plain" and "control".
        gates: per SE layer the mean gate of every class and channel, [classes, C].
    """
    with _page(path) as (left, right):
        _draw_losses(left, losses)
        _draw_gates(right, gates, DIGITS, "digit")


def draw_training(
    path: Path,
    *,
    losses: Sequence[float],
    gates: Mapping[str, np.ndarray],
    classes: Sequence[str],
    embeddings: tuple[np.ndarray, np.ndarray],
    pairs: Verification | None,
) -> None:
    """Writes the picture of one training: its loss, for identities ROC and embeddings, the gates.

    Args:
        gates: per SE layer the mean gate of every class and channel, [classes, C]; of many layers
            some from the first to the last are drawn, of many classes the first.
        embeddings: [N, D] and labels [N].
        pairs: for identities: their ROC is drawn beside the embeddings.
    """
    chosen = np.unique(np.linspace(0, len(gates) - 1, LAYERS).round().astype(int)) if gates else []
    names = [list(gates)[place] for place in chosen]
    with _page(path) as (left, right):
        axes = left.subplot_mosaic([["loss"] * 2, ["roc", "points"]] if pairs else [["loss"]])
        axes["loss"].plot(range(1, len(losses) + 1), losses, color=BLUE, linewidth=1)
        axes["loss"].set(xlabel="step", ylabel="training loss", yscale="log")
        axes["loss"].set_ylim(bottom=max(min(losses, default=1), LEAST_LOSS))
        if pairs:
            axes["roc"].plot(pairs.false_positives, pairs.true_positives, color=VERMILION)
            axes["roc"].set(title=f"pairs: area {pairs.area:.4f}", xlim=(0, 1), ylim=(0, 1.02))
            axes["roc"].set_xscale("symlog", linthresh=1e-3)
            axes["roc"].set(xlabel="false positives", ylabel="true positives")
            _draw_embeddings(axes["points"], *embeddings, classes)
        if names:
            seen = {name: gates[name][:CLASSES] for name in names}
            _draw_gates(right, seen, list(classes)[:CLASSES], "class")


@contextmanager
def _page(path: Path) -> Iterator[tuple[SubFigure, SubFigure]]:
    """Two halves to draw on; written to the path at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = plt.figure(figsize=(14, 7), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(1, 1.35), wspace=0.03)
        yield left, right
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _draw_embeddings(
    axis: Axes, embeddings: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> None:
    """The two directions in which the normalised embeddings vary most."""
    from sklearn.decomposition import PCA

    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)
    points = PCA(2, random_state=0).fit_transform(unit)
    colours = plt.get_cmap("tab20")
    for label in range(min(len(classes), CLASSES)):
        x, y = points[labels == label].T
        axis.scatter(x, y, s=8, color=colours(label % 20), label=classes[label])
    axis.set(xlabel="first principal component", ylabel="second", title="embeddings")
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    axis.legend(frameon=False, fontsize=8, markerscale=2, **beside)


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


def _draw_gates(
    part: SubFigure, gates: Mapping[str, np.ndarray], classes: Sequence[str], what: str
) -> None:
    """One panel per layer: a row per class, a column per channel."""
    part.suptitle(
        f"What SE learnt: the mean gate of every channel, {what} by {what}\n"
        "(white: 0.5, where gates start; every layer has its own scale)"
    )
    axes: list[Axes] = list(np.atleast_1d(part.subplots(len(gates), 1)))
    for axis, (name, gate) in zip(axes, gates.items(), strict=True):
        gate = np.nan_to_num(gate, nan=UNTRAINED)  # classes without a test image
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
        axis.set_yticks(range(len(gate)), [name[:12] for name in classes])
        axis.tick_params(length=0, labelsize=8)
        axis.set_ylabel(what)
        bar = part.colorbar(image, ax=axis, pad=0.01, aspect=12)
        bar.set_label("down  ←  gate  →  up", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    axes[-1].set_xlabel(f"channel, sorted by the {what} that opens it widest")
