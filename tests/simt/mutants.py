"""Kernels broken on purpose: copies of csrc/cuda with a text replaced, on the SIMT harness."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.simt import build

FOLDER = build.ROOT / "build" / "simt" / "mutants"
CUDA = build.ROOT / "csrc" / "cuda"


@dataclass(frozen=True)
class Mutant:
    name: str
    launcher: str  # the one .cu file that is compiled again
    file: str  # in csrc/cuda
    replacements: Sequence[tuple[str, str]]  # each text occurs exactly once

    @property
    def folder(self) -> str:
        return self.name.replace(" ", "-")


def build_base() -> Path:
    """The kernels as they are, for bfloat16 with float32 weights only."""
    return build.build_variant("mutants/base", _copy("base"))


def build_mutant(mutant: Mutant, base: Path, sanitize: str | None = None) -> Path:
    """Fails if a text to replace is not there: the kernel has changed, so must the mutant."""
    cuda = _copy(mutant.folder)
    text = (cuda / mutant.file).read_text()
    for old, new in mutant.replacements:
        if text.count(old) != 1:
            raise ValueError(f"{mutant.name}: {text.count(old)} times in {mutant.file}: {old!r}")
        text = text.replace(old, new)
    (cuda / mutant.file).write_text(text)
    variant = f"mutants/{mutant.folder}"
    return build.build_variant(variant, cuda, mutant.launcher, base, sanitize)


def _copy(name: str) -> Path:
    """A fresh copy of csrc/cuda, with file times kept, so that what is up to date stays so."""
    target = FOLDER / name / "cuda"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(CUDA, target)
    shutil.copy2(build.SIMT / "dispatch_bfloat16.cuh", target / "dispatch.cuh")
    return target
