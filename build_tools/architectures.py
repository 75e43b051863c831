"""Which GPU architectures the library is compiled for. No GPU is asked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from build_tools import BuildError

DEFAULT_ARCHITECTURES = "7.5;8.0;8.6;9.0;10.0;12.0+PTX"

# The source of the kernels differs from 8.0 on (acquire and release) and from 9.0 on (launches that
# overlap): see __CUDA_ARCH__ in csrc/.
SOURCES = (75, 80, 90)

_ARCHITECTURE_NAMES = {
    "all": DEFAULT_ARCHITECTURES.removesuffix("+PTX"),
    "turing": "7.5",
    "ampere": "8.0;8.6",
    "ada": "8.9",
    "hopper": "9.0",
    "blackwell": "10.0;12.0",
}


def parse_arch_list(text: str) -> list[str]:
    """`"8.0;9.0a 12.0+PTX"` -> `["8.0", "9.0a", "12.0+PTX"]`; commas and names (Hopper) do too."""
    ptx: dict[str, bool] = {}
    for word in re.split(r"[;,\s]+", text.strip()):
        if not word:
            continue
        base, plus, suffix = word.partition("+")
        if base.lower() == "native":
            raise BuildError(
                "TORCH_CUDA_ARCH_LIST: no GPU is asked; name its architecture instead of native, "
                "as torch.cuda.get_device_capability() tells it: 9.0"
            )
        base = _ARCHITECTURE_NAMES.get(base.lower(), base)
        numbers = base.split(";")
        if (plus and suffix.upper() != "PTX") or not all(
            re.fullmatch(r"\d+\.\d[af]?", number) for number in numbers
        ):
            names = ", ".join(name.capitalize() for name in _ARCHITECTURE_NAMES)
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST: cannot read {word!r} in {text!r}; known forms are "
                f"9.0, 9.0a, 9.0+PTX and {names}"
            )
        for number in numbers:
            ptx[number] = ptx.get(number, False) or (bool(plus) and number == numbers[-1])
    if not ptx:
        raise BuildError(f"TORCH_CUDA_ARCH_LIST names no architecture: {text!r}")
    order = sorted(ptx, key=lambda number: (float(number.rstrip("af")), number))
    return [number + ("+PTX" if ptx[number] else "") for number in order]


def _compute(architecture: str) -> str:
    return architecture.removesuffix("+PTX").replace(".", "")


def choose_architectures(environ: Mapping[str, str], known: Sequence[str]) -> list[str]:
    """`TORCH_CUDA_ARCH_LIST`, or the default list cut to what this nvcc knows.

    `known` is what `nvcc --list-gpu-arch` prints ("compute_90"); empty: nothing is checked.
    """
    wanted = environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    chosen = parse_arch_list(wanted or DEFAULT_ARCHITECTURES)
    missing = [
        arch for arch in chosen if known and f"compute_{_compute(arch).rstrip('af')}" not in known
    ]
    if wanted and missing:
        raise BuildError(
            f"TORCH_CUDA_ARCH_LIST: this nvcc cannot compile for {', '.join(missing)}; it knows "
            f"{', '.join(known)}"
        )
    chosen = [arch for arch in chosen if arch not in missing]
    if not chosen:
        raise BuildError(
            f"this nvcc knows none of {DEFAULT_ARCHITECTURES}, only {', '.join(known)}"
        )
    if missing and not chosen[-1].endswith("+PTX"):
        chosen[-1] += "+PTX"  # newer GPUs compile it when they load it
    return chosen


def gencode_flags(architectures: Iterable[str]) -> list[str]:
    """The flags of nvcc. Architectures that run the same source share its first compilation."""
    flags = []
    for architecture in architectures:
        number = _compute(architecture)
        source = number
        if number.isdigit():
            source = str(max((s for s in SOURCES if s <= int(number)), default=number))
        flags.append(f"-gencode=arch=compute_{source},code=sm_{number}")
        if architecture.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{source},code=compute_{source}")
    return flags
