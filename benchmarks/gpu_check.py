"""Everything that needs a GPU, in one command, with no network: build, tests, sanitizers, figures.

    python -m benchmarks.gpu_check --parts build test sanitize truth compile op model scaling plot

Each part is stopped at its limit and the whole at `--minutes`; what a part measured before is kept,
and it goes on from there when run again. Without `--parts`, the parts run that are not yet ok at
this commit. Works in `out/gpu-check/<gpu>-<yyyymmdd>`, copies the data to `benchmarks/results`, and
packs everything into the folder that the variable OUT names, if it does. The exit code is 0 if
every part that ran is ok.

`--dry-run` runs the same commands on the CPU, as small as they get, `--dry-run cuda` on the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.gpu_parts import Part, parts
from benchmarks.gpu_run import Outcome, missing_tools, run_part
from benchmarks.record import RESULTS, ROOT, commit

STATE = "gpu_check.json"
NO_DATA = ("*.log", "*.xml")  # stays out of benchmarks/results


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if every part that ran is ok, 1 if not, 2 if there is no GPU."""
    options = _arguments(argv)
    if not options.dry_run and not torch.cuda.is_available():
        print(f"error: {no_device()}; --dry-run needs none")
        return 2
    known = parts(_architecture())
    folder = _open_folder(options.work, options.dry_run)
    outcomes, here = _read(folder), commit()
    for part in known.values():
        missing = missing_tools(part)
        if missing:
            print(f"missing for {part.name}: {', '.join(missing)}")
    done = [] if options.dry_run else [name for name, item in outcomes.items() if item.is_ok(here)]
    chosen = options.parts or [name for name in known if name not in done]
    deadline = time.monotonic() + 60 * options.minutes
    for part in known.values():
        if part.name in chosen:
            outcomes[part.name] = run_part(part, folder, deadline, options.dry_run, here)
            _write(folder, outcomes)
            _deliver(folder, options.dry_run)
    print(screen(folder, list(known.values()), outcomes))
    return 0 if all(outcomes[name].verdict == "ok" for name in chosen) else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    names = list(parts(""))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check")
    parser.add_argument("--parts", nargs="*", choices=names, metavar="PART", help=" ".join(names))
    parser.add_argument("--minutes", type=float, default=25, help="for the whole; default 25")
    parser.add_argument(
        "--dry-run",
        nargs="?",
        const="cpu",
        choices=["cpu", "cuda"],
        help="as small as it gets, on the CPU or, with `cuda`, on the GPU",
    )
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "gpu-check", help="where")
    return parser.parse_args(argv)


def no_device() -> str:
    """Why there is nothing to check on."""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is a build without CUDA: install one for this GPU"
    return f"PyTorch, built for CUDA {torch.version.cuda}, sees no CUDA device: check nvidia-smi"


def _architecture() -> str:
    if not torch.cuda.is_available():
        return "9.0"
    return "{}.{}".format(*torch.cuda.get_device_capability())


def _open_folder(work: Path, dry_run: str | None) -> Path:
    """Today's folder for this GPU; what was published of today's is where it starts from."""
    name = "dry-run" if dry_run else device_slug(torch.cuda.get_device_name())
    folder = work / f"{name}-{time.strftime('%Y%m%d')}"
    published = _published(folder)
    if not folder.exists() and published.exists():
        shutil.copytree(published, folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def device_slug(name: str) -> str:
    """`NVIDIA H200` -> `h200`."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return "-".join(word for word in words if word not in ("nvidia", "geforce", "tesla"))


def _published(folder: Path) -> Path:
    return RESULTS / folder.name


def _read(folder: Path) -> dict[str, Outcome]:
    path = folder / STATE
    states = json.loads(path.read_text()) if path.exists() else {}
    return {name: Outcome(**state) for name, state in states.items()}


def _write(folder: Path, outcomes: dict[str, Outcome]) -> None:
    states = {name: asdict(outcome) for name, outcome in outcomes.items()}
    (folder / STATE).write_text(json.dumps(states, indent=1) + "\n")


def _deliver(folder: Path, dry_run: str | None) -> None:
    """After every part, so that nothing is lost if the next one is cut off."""
    if not dry_run:
        ignored = shutil.ignore_patterns(*NO_DATA)
        shutil.copytree(folder, _published(folder), ignore=ignored, dirs_exist_ok=True)
    out = os.environ.get("OUT")
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
        with tarfile.open(Path(out) / f"{folder.name}.tar.gz", "w:gz") as archive:
            archive.add(folder, folder.name)


def screen(folder: Path, known: Sequence[Part], outcomes: dict[str, Outcome]) -> str:
    """The verdict: a line per part, and where everything is."""
    width = max(len(part.name) for part in known)
    lines = ["", f"{'part':{width}}  {'verdict':12}  seconds"]
    for part in known:
        outcome = outcomes.get(part.name, Outcome("not run", part.about, 0, None))
        line = f"{part.name:{width}}  {outcome.verdict:12}  {outcome.seconds:7.0f}"
        lines.append(f"{line}  {outcome.detail}"[:140].rstrip())
    return "\n".join([*lines, "", f"commit {commit()}; everything is in {folder}"])


if __name__ == "__main__":
    sys.exit(main())
