"""Turns the SE layers of an existing model into fused ones, in place, and back.

One line, same weights, same numbers::

    print(seblock_cuda.convert_se_modules(model))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from seblock_cuda import convert_probe as probe
from seblock_cuda import convert_structure as structure
from seblock_cuda.convert_recipe import (
    KNOWN,
    NEVER,
    FusedSE,
    Recipe,
    Refused,
    full_name,
    known_recipe,
)
from seblock_cuda.convert_tail import FusedTail, find_block, fold_tail
from seblock_cuda.layers import SELayer

_INLINE = re.compile(r"se_?(reduce|expand)", re.IGNORECASE)


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
    """

    path: str
    kind: str
    action: str
    difference: float | None = None
    reason: str = ""


class ConversionReport:
    """What :func:`convert_se_modules` did and did not do: iterable, and a table when printed."""

    def __init__(self, entries: list[Conversion]) -> None:
        self.entries = entries

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
        if not self.entries:
            return "no SE layers found"
        header = ("path", "class", "action", "largest difference", "reason")
        rows = [header, *map(_row, self.entries)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        actions = dict.fromkeys(entry.action for entry in self.entries)
        counts = ", ".join(f"{len(self.having(action))} {action}" for action in actions)
        return "\n".join([*lines, counts])

    __repr__ = __str__


def _row(entry: Conversion) -> tuple[str, ...]:
    kind = entry.kind.rpartition(".")[2]
    difference = "" if entry.difference is None else f"{entry.difference:.1e}"
    return entry.path or "(the model)", kind, entry.action, difference, entry.reason


def recipe_of(module: nn.Module) -> Recipe | None:
    """How the op runs this layer; None if it does not look like an SE layer.

    Known classes by their name, any other by its structure and its numbers.

    Raises:
        Refused: it looks like one, but cannot be run by the op.
    """
    if not _is_evident(module) and not structure.looks_like_se(module):
        return None
    if isinstance(module, torch.jit.ScriptModule):
        raise Refused("it is a ScriptModule")
    if structure.is_part_of_block(module) or any(map(_is_evident, _inner(module))):
        return None
    if full_name(module) in KNOWN or full_name(module) in NEVER:
        structure.check_untouched(module)
        return known_recipe(module)
    with probe.plain_state():
        try:
            structure.check_untouched(module)
            paths, ranks = structure.read_structure(module)
        except structure.NotSE as reason:
            if structure.named_se(module):
                raise Refused(str(reason)) from None
            return None
        except Refused:
            if structure.is_evident(module):
                raise
            return None
        own = probe.own_copy(module)
        probe.spread_weights(own, paths)
        names, ranks = probe.find_names(own, paths, ranks)
        recipe = Recipe(paths[0] if len(paths) == 2 else (), paths[-1], *names, ranks)
        probe.prove(own, recipe)  # a structure says nothing of numbers: always proved
        return recipe


def _is_evident(module: nn.Module) -> bool:
    """Whether the class says that this is an SE layer."""
    name = full_name(module)
    return name in KNOWN or name in NEVER or structure.named_se(module)


def _inner(module: nn.Module) -> list[nn.Module]:
    return [inner for inner in module.modules() if inner is not module]


def _convert(module: nn.Module, verify: bool) -> tuple[FusedSE, float | None] | None:
    recipe = recipe_of(module)
    if recipe is None:
        return None
    difference = None
    if verify:
        with probe.plain_state():
            own = probe.own_copy(module)
            probe.spread_weights(own, [path for path in (recipe.reduce, recipe.expand) if path])
            difference = probe.prove(own, recipe)
    return FusedSE(module, recipe), difference


def convert_se_modules(
    model: nn.Module, *, verify: bool = True, fuse_residual: bool = False
) -> ConversionReport:
    """Replaces every SE layer within a model by one that runs through the fused op; in place.

    Children and parameters stay the same objects under the same names: checkpoints, optimisers,
    EMA and DDP go on as they were. What cannot be replaced stays, and is in the report with the
    reason. Inputs of another rank than the layer was made for still go through its own forward.

    Args:
        model: any module around the layers.
        verify: whether to prove each replacement on a copy of the layer: result and all gradients,
            in float64, in training and in evaluation. Without it, classes that are known by name
            are taken at their word; any other, and each folded tail, is proved all the same.
        fuse_residual: whether to fold ``relu(se(x) + shortcut)`` at the end of residual blocks
            into the op too; what the block's forward decides from its own attributes is then
            decided once, here.

    Returns:
        A report of every SE layer, printable and iterable.
    """
    fused: dict[int, nn.Module] = {}  # by id of the original
    entries: dict[int, Conversion] = {}
    for path, module in _modules(model, entries):
        if id(module) in entries:
            entry = entries[id(module)]
            entries[id(module)] = replace(entry, path=f"{entry.path}, {path}")
            continue
        try:
            done = _convert(module, verify)
            if done is not None and module is model:
                raise Refused("it is the model itself: convert what holds it")
        except Refused as refusal:
            entries[id(module)] = _left(path, module, str(refusal))
            continue
        if done is not None:
            fused[id(module)], difference = done
            entries[id(module)] = Conversion(path, full_name(module), "converted", difference)
        elif sum(bool(_INLINE.search(child)) for child in module._modules) >= 2:
            inline = "SE is written into this block's forward: there is no module to replace"
            entries[id(module)] = _left(path, module, inline)
    _replace(model, lambda module: fused.get(id(module)))
    report = list(entries.values())
    if fuse_residual:
        report += _fold_tails(model)
    return ConversionReport(report)


def _modules(
    module: nn.Module, handled: Container[int], path: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """All modules with their paths, shared ones once per path; none within what is `handled`."""
    if isinstance(module, SELayer):
        return
    yield path, module
    if id(module) not in handled:
        for name, child in module._modules.items():
            if child is not None:
                yield from _modules(child, handled, f"{path}.{name}" if path else name)


def _left(path: str, module: nn.Module, reason: str) -> Conversion:
    return Conversion(path, full_name(module), "left", None, reason)


def _fold_tails(model: nn.Module) -> list[Conversion]:
    folded: dict[int, nn.Module] = {}
    entries = []
    for path, layer in model.named_modules():
        if not isinstance(layer, FusedSE):
            continue
        block_path, se_path = find_block(model, path)
        block = model.get_submodule(block_path)
        if isinstance(block, FusedTail):
            continue
        action, difference, reason = "tail kept", None, ""
        try:
            if not block_path:
                raise Refused("there is no block around it within the model")
            folded[id(block)], difference = fold_tail(block, se_path)
            action = "tail fused"
        except Refused as refusal:
            reason = str(refusal)
        entries.append(Conversion(block_path, full_name(block), action, difference, reason))
    _replace(model, lambda module: folded.get(id(module)))
    return entries


def revert_se_modules(model: nn.Module) -> int:
    """Puts the original modules back, in place; parameters keep what they have learnt since.

    Returns:
        How many SE layers were put back.
    """
    found = {id(module) for module in model.modules() if isinstance(module, FusedSE)}

    def original_of(module: nn.Module) -> nn.Module | None:
        if not isinstance(module, (FusedSE, FusedTail)):
            return None
        module.original.training = module.training
        return module.original

    _replace(model, original_of)
    return len(found)


def _replace(model: nn.Module, by: Callable[[nn.Module], nn.Module | None]) -> None:
    """Replaces modules wherever they are held, outermost first."""
    seen: set[int] = set()

    def visit(module: nn.Module) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        for name, child in module._modules.items():
            if child is not None:
                new = by(child) or child
                if new is not child:
                    module._modules[name] = new
                visit(new)

    visit(model)
