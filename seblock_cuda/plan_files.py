"""Where tuned plans are kept: one JSON file per device model, in the user's cache folder.

``SEBLOCK_PLANS`` names another file, or is ``off``. What a file has is read once, at import,
without a look at any GPU: a plan is for devices with the file's capability, multiprocessors and L2
bytes.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from seblock_cuda.plans import STRATEGIES, Problem

FORMAT = 1  # of the files
VARIABLE = "SEBLOCK_PLANS"
SHIPPED = Path(__file__).with_name("measured_plans")  # of the GPUs that were measured: none yet


@dataclass(frozen=True)
class Device:
    """A model of GPU; plans are made for these three numbers."""

    name: str
    capability: int
    multiprocessors: int
    l2_bytes: int

    @classmethod
    def of(cls, device: torch.device) -> Device:
        """Of a CUDA device."""
        found: Any = torch.cuda.get_device_properties(device)
        capability = 10 * found.major + found.minor
        return cls(found.name, capability, found.multi_processor_count, found.L2_cache_size)

    @property
    def numbers(self) -> tuple[int, int, int]:
        return self.capability, self.multiprocessors, self.l2_bytes


@dataclass(frozen=True)
class Choice:
    """What was found best; 0: as the rule has it."""

    strategy: str
    group: int = 0
    lag: int = 0
    blocks: int = 0


def folder() -> Path:
    """The user's cache folder for plans."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "seblock_cuda" / "plans"


def path_for(device: Device) -> Path | None:
    """The file of a device's plans; None: SEBLOCK_PLANS is off."""
    named = os.environ.get(VARIABLE)
    if named:
        return None if named == "off" else Path(named)
    return folder() / f"{re.sub(r'[^A-Za-z0-9.]+', '-', device.name)}-{device.capability}.json"


def use(device: Device, plans: Mapping[Problem, Choice], shipped: bool = False) -> None:
    """Runs these problems like this from now on, in this process, on devices like this one."""
    for problem, choice in plans.items():
        numbers = STRATEGIES.index(choice.strategy), choice.group, choice.lag, choice.blocks
        torch.ops.seblock_cuda.use_plan(*device.numbers, *problem.codes(), *numbers, shipped)


def load() -> None:
    """Uses what the files have; never raises. A file that cannot be read gets one warning."""
    named = os.environ.get(VARIABLE)
    if named == "off":
        return
    try:
        own = [Path(named)] if named else sorted(folder().glob("*.json"))
    except (OSError, RuntimeError):  # no home, or none that may be read
        own = []
    shipped = sorted(SHIPPED.glob("*.json"))
    for path in [*shipped, *own]:  # the later one counts
        try:
            if path.exists():
                use(*_read(path), shipped=path in shipped)
        except StaleError:
            pass  # the next tune writes it anew
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            warnings.warn(f"{path} holds no plans and is ignored: {error!r}", stacklevel=3)


class StaleError(Exception):
    """A file of another version."""


def _read(path: Path) -> tuple[Device, dict[Problem, Choice]]:
    """
    Raises:
        StaleError: it is of another version of the library or of the format.
        OSError, ValueError, KeyError, TypeError: it is none of ours.
    """
    found = json.loads(path.read_text())
    if (found["format"], found["version"]) != (FORMAT, _version()):
        raise StaleError
    plans = {Problem(**entry["problem"]): Choice(**entry["choice"]) for entry in found["plans"]}
    for problem, choice in plans.items():
        problem.codes(), STRATEGIES.index(choice.strategy)  # or it is none of ours
    return Device(**found["device"]), plans


def keep(device: Device, plans: Mapping[Problem, Choice]) -> Path | None:
    """Adds plans to the device's file, whoever else is writing; None if SEBLOCK_PLANS is off.

    Raises:
        OSError: it cannot be written.
    """
    path = path_for(device)
    if path is None:
        return None
    import fcntl  # not on Windows, where no plans are made

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _write(path, device, {**_known(path, device), **plans})
    return path


def _known(path: Path, device: Device) -> dict[Problem, Choice]:
    """What the file has already. A file of SEBLOCK_PLANS that is somebody else's stays as it is."""
    try:
        there, found = _read(path)
    except (FileNotFoundError, StaleError):
        return {}
    except (ValueError, KeyError, TypeError) as error:
        if os.environ.get(VARIABLE):
            raise OSError(f"{path} holds something else than plans") from error
        return {}
    if there != device:
        raise OSError(f"{path} is of another GPU, {there.name}")
    return found


def _write(path: Path, device: Device, plans: Mapping[Problem, Choice]) -> None:
    """In one piece: whoever reads finds the old file or the new one."""
    entries: Iterable[dict[str, Any]] = (
        {"problem": asdict(problem), "choice": asdict(choice)} for problem, choice in plans.items()
    )
    text = {
        "format": FORMAT,
        "version": _version(),
        "device": asdict(device),
        "plans": list(entries),
    }
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".new")
    try:
        with open(handle, "w") as file:
            json.dump(text, file, indent=1)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _version() -> str:
    import seblock_cuda

    return seblock_cuda.__version__
