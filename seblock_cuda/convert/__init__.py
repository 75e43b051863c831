"""Turns the SE layers of an existing model into fused ones, in place, and back.

One line, same weights, same numbers::

    print(seblock_cuda.convert_se_modules(model))

The way of a layer, a file a step: :mod:`.recognise` (is it SE? with :mod:`.inline` for what is no
module), :mod:`.read` (what does the op take of it? with :mod:`.known` for the classes of
libraries), :mod:`.prove` (are the numbers the same?), :mod:`.replace`, and :mod:`.tail` for what
follows it in its block. Whatever goes wrong with a layer on that way leaves it, with the reason in
the report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import nn

from seblock_cuda.convert import prove, tail
from seblock_cuda.convert.inline import written_inline
from seblock_cuda.convert.read import check_untouched, copy_to_trace, read_recipe
from seblock_cuda.convert.recognise import is_known, is_worth_a_word, may_be_se
from seblock_cuda.convert.replace import fuse, is_converted, restore
from seblock_cuda.convert.report import (
    Conversion,
    ConversionReport,
    Refused,
    full_name,
    one_line,
)
from seblock_cuda.fused import FusedSE, Recipe

__all__ = [
    "Conversion",
    "ConversionReport",
    "convert_se_modules",
    "recipe_of",
    "revert_se_modules",
]

T = TypeVar("T")


@dataclass
class _Outcome(Generic[T]):
    """What came of reading and proving one layer, or block; it holds for all that are alike."""

    path: str
    found: T | None = None
    difference: float | None = None
    refusal: str = ""


class _Outcomes(Generic[T]):
    """Outcomes of one conversion, by what is alike."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Outcome[T]] = {}

    def of(
        self,
        module: nn.Module,
        path: str,
        work_out: Callable[[], tuple[T | None, float | None]],
        part: str = "",
    ) -> _Outcome[T]:
        """The outcome of (a part of) this module, worked out unless one that is alike has been."""
        key = prove.alike(module)
        if key is not None:
            key = (key, part)
            if key in self._known:
                return self._known[key]
        outcome: _Outcome[T] = _Outcome(path)
        try:
            with prove.plain_state():
                outcome.found, outcome.difference = work_out()
        except Refused as refusal:
            outcome.refusal = str(refusal)
        except Exception as error:
            outcome.refusal = f"it cannot be checked: {one_line(error)}"
        if key is not None:
            self._known[key] = outcome
        return outcome


def recipe_of(module: nn.Module, *, hooks: bool = True) -> Recipe | None:
    """How the op runs this layer, proved if its class is not known; None if it is no SE layer.

    Args:
        hooks: whether hooks on its children refuse it.

    Raises:
        Refused: it is one, but cannot be run by the op.
    """
    if not may_be_se(module) or not _is_untouched(module, hooks):
        return None
    with prove.plain_state():
        recipe = read_recipe(module)
        if recipe is not None and not is_known(module):
            prove.prove(module, recipe)
        return recipe


def convert_se_modules(
    model: nn.Module, *, verify: bool = True, fuse_residual: bool = False
) -> ConversionReport:
    """Makes every SE layer within a model run through the fused op; in place.

    Modules and parameters stay the same objects under the same names, with the hooks that they
    have: checkpoints, optimisers, EMA and DDP go on as they were. What cannot be converted stays
    as it is, and is in the report with the reason. Inputs of another rank than the layer was made
    for still go through its own forward, and so do all inputs once its parts are no longer what
    they are now.

    Args:
        model: any module around the layers.
        verify: whether to prove each layer on a copy: result and all gradients, in float64, in
            training and in evaluation; layers of one class with the same values and shapes are
            proved once. Without it, classes that are known by name are taken at their word; any
            other, and each folded tail, is proved all the same.
        fuse_residual: whether to fold ``relu(se(x) + shortcut)`` at the end of residual blocks
            into the op too.

    Returns:
        A report of every SE layer, printable and iterable.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, which holds the layers, got {model!r}")
    changed: list[nn.Module] = []
    try:
        entries, before = _convert_layers(model, verify, changed)
        if fuse_residual:
            entries += _fold_tails(model, changed)
    except BaseException:  # an interruption: nothing is left half done
        for module in reversed(changed):
            restore(module)
        raise
    return ConversionReport(entries, before)


def revert_se_modules(model: nn.Module) -> int:
    """Gives the layers their own forward back, in place; parameters keep what they have learnt.

    Returns:
        How many SE layers were put back.
    """
    fused = [module for module in model.modules() if is_converted(module)]
    layers = sum(isinstance(module, FusedSE) for module in fused)
    for module in fused:
        restore(module)
    return layers


def _convert_layers(
    model: nn.Module, verify: bool, changed: list[nn.Module]
) -> tuple[list[Conversion], int]:
    """Converts what is SE; the report's entries, and how many layers were fused before."""
    outcomes: _Outcomes[Recipe] = _Outcomes()
    entries: dict[int, Conversion] = {}
    others: dict[int, tuple[str, nn.Module]] = {}
    before = {id(module) for module in model.modules() if is_converted(module)}
    for path, module in _walk(model, entries):
        if id(module) in entries:
            entry = entries[id(module)]
            entries[id(module)] = dataclasses.replace(entry, path=f"{entry.path}, {path}")
        elif made := _convert_layer(module, path, verify, outcomes, changed):
            entries[id(module)] = made
        else:
            others.setdefault(id(module), (path, module))
    for path, module in others.values():
        reason = written_inline(module, entries)
        if reason:
            entries[id(module)] = _left(path, module, reason)
    layers = sum(id(m) in before and isinstance(m, FusedSE) for m in model.modules())
    return list(entries.values()), layers


def _walk(
    module: nn.Module, handled: Container[int], path: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """All modules with their paths, shared ones once per path; none within what is `handled`."""
    if isinstance(module, FusedSE) and id(module) not in handled:
        return
    yield path, module
    if id(module) not in handled:
        for name, child in module._modules.items():
            if child is not None:
                yield from _walk(child, handled, f"{path}.{name}" if path else name)


def _convert_layer(
    module: nn.Module,
    path: str,
    verify: bool,
    outcomes: _Outcomes[Recipe],
    changed: list[nn.Module],
) -> Conversion | None:
    """Converts one module, if it is SE; None if it is not."""

    def read_and_prove() -> tuple[Recipe | None, float | None]:
        recipe = read_recipe(module)
        if recipe is None or (is_known(module) and not verify):
            return recipe, None
        return recipe, prove.prove(module, recipe)

    try:
        if not may_be_se(module) or not _is_untouched(module):
            return None
        outcome = outcomes.of(module, path, read_and_prove)
        if outcome.refusal:
            raise Refused(outcome.refusal)
        if outcome.found is None:
            return None
        kind = full_name(module)
        changed.append(module)
        fuse(module, outcome.found)
    except Refused as refusal:
        return _left(path, module, str(refusal))
    except Exception as error:
        return _left(path, module, f"it cannot be converted: {one_line(error)}")
    difference = outcome.difference if verify else None
    proved_with = outcome.path if verify and outcome.path != path else ""
    return Conversion(path, kind, "converted", difference, proved_with=proved_with)


def _is_untouched(module: nn.Module, hooks: bool = True) -> bool:
    """Whether a layer can be read; raises Refused if that it cannot is worth a word."""
    try:
        check_untouched(module, hooks=hooks)
    except Refused:
        if is_worth_a_word(module):
            raise
        return False
    return True


def _left(path: str, module: nn.Module, reason: str) -> Conversion:
    return Conversion(path, full_name(module), "left", None, reason)


def _fold_tails(model: nn.Module, changed: list[nn.Module]) -> list[Conversion]:
    outcomes: _Outcomes[tail.Tail] = _Outcomes()
    entries = []
    for path, layer in model.named_modules():
        if isinstance(layer, FusedSE) and is_converted(layer):
            block_path, se_path = tail.find_block(model, path)
            block = model.get_submodule(block_path)
            if not isinstance(block, tail.FusedTail):
                entries.append(_fold_tail(block, block_path, se_path, outcomes, changed))
    return entries


def _fold_tail(
    block: nn.Module,
    path: str,
    se_path: str,
    outcomes: _Outcomes[tail.Tail],
    changed: list[nn.Module],
) -> Conversion:
    def fold_and_prove() -> tuple[tail.Tail, float]:
        folded = tail.Tail(copy_to_trace(block), se_path)
        return folded, tail.prove_tail(block, folded)

    kind = full_name(block)
    try:
        if not se_path or not path:
            raise Refused("there is no block around it within the model")
        outcome = outcomes.of(block, path, fold_and_prove, se_path)
        if outcome.found is None:
            raise Refused(outcome.refusal)
        changed.append(block)
        tail.fold(block, outcome.found)
    except Refused as refusal:
        return Conversion(path, kind, "tail kept", None, str(refusal))
    except Exception as error:
        return Conversion(path, kind, "tail kept", None, f"it cannot be folded: {one_line(error)}")
    proved_with = outcome.path if outcome.path != path else ""
    return Conversion(path, kind, "tail fused", outcome.difference, proved_with=proved_with)
