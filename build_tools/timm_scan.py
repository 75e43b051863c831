"""Converts the SE layers of every model of timm, on the meta device, and writes docs/timm.md.

The numbers of the layers are proved once per class of layer and shape pattern, on real numbers.

    python -m build_tools.timm_scan
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from seblock_cuda import Conversion, convert_se_modules, revert_se_modules
from seblock_cuda.convert import prove
from seblock_cuda.convert.report import full_name
from seblock_cuda.fused import FusedSE

PAGE = Path(__file__).parent.parent / "docs/timm.md"


@dataclass
class Scan:
    """What was found so far."""

    models: int = 0
    failed: list[str] = field(default_factory=list)
    layers: dict[str, list[Conversion]] = field(default_factory=dict)  # by model, where there are
    proved: dict[Hashable, tuple[str, float]] = field(default_factory=dict)  # by what is alike

    def add(self, name: str, model: nn.Module) -> None:
        """Converts one model, proves what is new in it."""
        report = convert_se_modules(model, verify=False)
        self.models += 1
        if len(report):
            self.layers[name] = list(report)
        fused = [(m, m._recipe) for m in model.modules() if isinstance(m, FusedSE)]
        revert_se_modules(model)
        for module, recipe in fused:
            key = prove.alike(module)
            if key not in self.proved:
                with prove.plain_state():
                    self.proved[key] = full_name(module), prove.prove(module, recipe)


def scan(names: Iterable[str]) -> Scan:
    """Scans these models of timm."""
    import timm

    found = Scan()
    for name in names:
        try:
            with warnings.catch_warnings(), torch.device("meta"):
                warnings.simplefilter("ignore")
                model = timm.create_model(name)
        except Exception as error:
            found.failed.append(f"{name} ({type(error).__name__})")
            continue
        found.add(name, model)
    return found


def page(found: Scan) -> str:
    """The scan as Markdown."""
    import timm

    layers: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name, entries in found.layers.items():
        for entry in entries:
            layers[entry.kind, entry.action, entry.reason].append(name)
    actions = Counter(entry.action for entries in found.layers.values() for entry in entries)
    total = sum(actions.values())
    lines = [
        "# Every SE layer of timm",
        "",
        "Written by `python -m build_tools.timm_scan`: every model is built on the meta device and",
        "given to `convert_se_modules`; each class of layer is compared with its original in",
        "float64, result and all gradients, once per shape pattern: the largest difference.",
        "",
        f"timm {timm.__version__}, torch {torch.__version__.partition('+')[0]}: "
        f"{found.models} models, {len(found.layers)} of them with SE layers, {total} layers: "
        + ", ".join(f"{count} {action}" for action, count in actions.items())
        + ".",
        "",
        "| class | action | layers | models | patterns | difference | reason, or an example |",
        "|---|---|---|---|---|---|---|",
    ]
    for (kind, action, reason), where in sorted(layers.items(), key=lambda item: -len(item[1])):
        differences = [d for proved, d in found.proved.values() if proved == kind]
        proof = ("", "")
        if action == "converted":
            proof = (str(len(differences)), f"{max(differences):.0e}")
        lines.append(
            f"| `{kind}` | {action} | {len(where)} | {len(set(where))} | {proof[0]} | {proof[1]} "
            f"| {reason or where[0]} |"
        )
    left = {
        name: sum(entry.action == "left" for entry in entries)
        for name, entries in found.layers.items()
    }
    names = [f"{name} ({count})" for name, count in left.items() if count]
    lines += ["", "Models with layers that are left: " + (", ".join(names) or "none") + "."]
    if found.failed:
        lines += ["", "Not built on the meta device: " + ", ".join(found.failed) + "."]
    return "\n".join(lines) + "\n"


def main() -> int:
    import timm

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="models to scan instead of all; printed")
    names = parser.parse_args().names
    text = page(scan(names or timm.list_models()))
    if names:
        print(text)
    else:
        PAGE.write_text(text)
        print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
