"""The parts of the GPU check: what each runs, what it needs, how long it may take."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

RESULTS = "{results}"  # in a command: the folder of this run
BUDGET = "{budget}"  # in a command: the seconds after which it should start nothing new
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Where the shortcut is added and passed through a ReLU right after SE.
RESIDUAL_NETWORKS = ("seresnet50", "regnety_160", "board_8x8", "board_19x19")


@dataclass(frozen=True)
class Command:
    """One process. A dry run adds `dry` to the arguments, or leaves it out where that is None."""

    words: Sequence[str]
    dry: Sequence[str] | None = ()


@dataclass(frozen=True)
class Part:
    """Commands that run one after the other, all of them, whatever becomes of the first."""

    name: str
    about: str
    commands: Sequence[Command]
    seconds: float  # for all commands together
    programs: Sequence[str] = ()
    modules: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)
    equal_shares: bool = False  # of the time; or the first command may take it all


def _python(*words: str, dry: Sequence[str] | None = ()) -> Command:
    return Command([sys.executable, *words], dry)


def _sanitizer(tool: str, *words: str) -> Command:
    return Command(["compute-sanitizer", "--tool", tool, "--error-exitcode", "66", *words], None)


def _benchmark(name: str, *options: str, dry: str) -> Command:
    fixed = ("-m", f"benchmarks.{name}", "--results", RESULTS)
    return _python(*fixed, *options, dry=["--device", "cpu", *dry.split()])


_OP_DRY = "--quick --max-mb 0.1 --seconds 0.001 --providers fused plain copy --threads 1"
_OP = ("--layout", "nchw", "nhwc", "--cache", "cold", "hot", "--seconds", "0.06")
_OP_PROVIDERS = ("--providers", "fused", "plain", "compile", "compile_graph", "copy")
_BENCHMARK_MODULES = ("tabulate", "tqdm", "numpy")


def _op(program: str, *options: str, dry: str = "--rows 23") -> Command:
    fixed = (*_OP, *_OP_PROVIDERS, "--budget", BUDGET)
    return _benchmark(program, *fixed, *options, dry=f"{_OP_DRY} {dry}")


def parts(architecture: str) -> dict[str, Part]:
    """Every part by name, in the order of running.

    Args:
        architecture: what to compile for, e.g. "9.0".
    """
    sanitized = ("-m", "tests.sanitized_shapes")
    residual = ("--residual", "1", "--network", *RESIDUAL_NETWORKS)
    all_parts = [
        Part(
            "build",
            "compiles in place with what is here, no network",
            [_python("setup.py", "build_ext", "--inplace", dry=["--help"])],
            540,
            programs=("nvcc", "c++"),
            modules=("setuptools", "ninja", "pybind11"),
            environment={"SEBLOCK_WITH_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architecture},
        ),
        Part(
            "test",
            "every test marked gpu",
            [
                _python(
                    *("-m", "pytest", "-m", "gpu", "-q", "--continue-on-collection-errors"),
                    *("-p", "no:cacheprovider", f"--junitxml={RESULTS}/test.xml"),
                    dry=["--collect-only", "tests/test_op.py"],
                )
            ],
            540,
            modules=("pytest",),
        ),
        Part(
            "sanitize",
            "compute-sanitizer on a small set of shapes",
            [
                _python(*sanitized, dry=["--device", "cpu", "--few"]),
                *(_sanitizer(tool, sys.executable, *sanitized) for tool in SANITIZERS),
            ],
            540,
            programs=("compute-sanitizer",),
            environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            equal_shares=True,
        ),
        Part(
            "truth",
            "the speeds of this GPU, and what plain PyTorch and torch.compile launch",
            [_benchmark("truth", dry="--quick")],
            240,
            modules=("tabulate", "triton"),
        ),
        Part(
            "compile",
            "compiles the rivals ahead, in parallel, so that `op` only times",
            [_op("precompile", "--dtype", "bfloat16", dry="--rows 23 --no-compile")],
            300,
            modules=_BENCHMARK_MODULES,
        ),
        Part(
            "op",
            "the layer on the workload table",
            [
                _op("op", "--dtype", "bfloat16"),
                _op("op", "--dtype", "bfloat16", *residual),
                _op("op", "--dtype", "float16", "float32"),
            ],
            540,
            modules=_BENCHMARK_MODULES,
        ),
        Part(
            "model",
            "whole training steps",
            [
                _benchmark(
                    "model",
                    "--seconds",
                    "1.5",
                    "--budget",
                    BUDGET,
                    dry="--quick --threads 1 --network mobilenetv3_large_100",
                )
            ],
            540,
            modules=("timm", "torchvision", *_BENCHMARK_MODULES),
        ),
        Part(
            "scaling",
            "cost against N, C and S",
            [_op("scaling", "--dtype", "bfloat16", dry="--sweep sweep_s --layout nchw")],
            300,
            modules=_BENCHMARK_MODULES,
        ),
        Part(
            "plot",
            "the pictures",
            [_python("-m", "benchmarks.plot", RESULTS)],
            120,
            modules=("matplotlib",),
        ),
    ]
    return {part.name: part for part in all_parts}


def fill(words: Sequence[str], results: Path, budget: float) -> list[str]:
    """A command with its folder and its seconds put in."""
    return [
        word.replace(RESULTS, str(results)).replace(BUDGET, f"{max(1, budget):.0f}")
        for word in words
    ]
