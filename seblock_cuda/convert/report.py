"""What a conversion did and did not do, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


class Refused(Exception):
    """A layer stays as it is; the message is the reason."""


@dataclass(frozen=True)
class Conversion:
    """One layer (or block) of a :class:`ConversionReport`.

    Attributes:
        path: where it is; several paths, joined by a comma, where it is shared.
        kind: its class, with the module that defines it.
        action: ``converted``, ``left``, ``tail fused`` or ``tail kept``.
        difference: the largest relative difference to the original, of result and gradients, in
            float64; None where nothing was compared.
        reason: why it was left or kept.
        proved_with: the path of a layer of the same class, values and shapes, if that one was
            compared for both.
    """

    path: str
    kind: str
    action: str
    difference: float | None = None
    reason: str = ""
    proved_with: str = ""


class ConversionReport:
    """What :func:`convert_se_modules` did and did not do: iterable, and a table when printed.

    Attributes:
        entries: a :class:`Conversion` for every layer and block.
        before: how many layers had been converted before.
    """

    def __init__(self, entries: list[Conversion], before: int = 0) -> None:
        self.entries = entries
        self.before = before

    def __iter__(self) -> Iterator[Conversion]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def having(self, action: str) -> list[Conversion]:
        """The entries with this action."""
        return [entry for entry in self.entries if entry.action == action]

    @property
    def converted(self) -> list[Conversion]:
        return self.having("converted")

    @property
    def left(self) -> list[Conversion]:
        return self.having("left")

    def __str__(self) -> str:
        before = f"{self.before} had been converted before" if self.before else ""
        if not self.entries:
            return f"no SE layers found{': ' + before if before else ''}"
        header = ("path", "class", "action", "largest difference", "reason")
        rows = [header, *map(_row, self.entries)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        actions = dict.fromkeys(entry.action for entry in self.entries)
        counts = [f"{len(self.having(action))} {action}" for action in actions]
        return "\n".join([*lines, ", ".join([*counts, *([before] if before else [])])])

    __repr__ = __str__


def _row(entry: Conversion) -> tuple[str, ...]:
    kind = entry.kind.rpartition(".")[2]
    difference = "" if entry.difference is None else f"{entry.difference:.1e}"
    reason = f"proved with {entry.proved_with}" if entry.proved_with else entry.reason
    return entry.path or "(the model)", kind, entry.action, difference, reason


def full_name(module: nn.Module) -> str:
    """The class with the module that defines it."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def one_line(error: BaseException) -> str:
    """Class and first line of an exception."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:100] if lines else ''}"
