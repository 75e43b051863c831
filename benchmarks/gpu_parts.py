"""The parts of the GPU check: what each runs, what it needs, how long it may take."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

RESULTS = "{results}"  # in a command: the folder of this run
BUDGET = "{budget}"  # in a command: the seconds after which it should start nothing new
DEVICE = "{device}"  # in a dry run's arguments: cpu or cuda
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
STRATEGIES = "tests/test_cuda_strategies.py"
# Where the shortcut is added and passed through a ReLU right after SE.
RESIDUAL_NETWORKS = ("seresnet50", "regnety_160", "board_8x8", "board_19x19")


@dataclass(frozen=True)
class Command:
    """One process. A dry run adds `dry` to the arguments; on the CPU it leaves `on_gpu` out."""

    words: Sequence[str]
    dry: Sequence[str] = ()
    on_gpu: bool = False


@dataclass(frozen=True)
class Part:
    """Commands that run one after the other, all of them, whatever becomes of the first."""

    name: str
    about: str
    commands: Sequence[Command]
    seconds: float  # for all commands together
    modules: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)
    equal_shares: bool = False  # of the time; or the first command may take it all


def _python(*words: str, dry: Sequence[str] = (), on_gpu: bool = False) -> Command:
    return Command([sys.executable, *words], dry, on_gpu)


def _sanitizer(tool: str, command: Command) -> Command:
    # A call into the driver that fails raises in Python if it is ours; torch asks the driver for
    # what it may not have, and a report of that would fail the part.
    fixed = ("--report-api-errors", "no", "--error-exitcode", "66")
    words = ["compute-sanitizer", "--tool", tool, *fixed, *command.words]
    return Command(words, command.dry, on_gpu=True)


def _benchmark(name: str, *options: str, dry: str) -> Command:
    # or, where the library cannot be used, the CPU would be measured instead
    fixed = ("-m", f"benchmarks.{name}", "--results", RESULTS, "--device", "cuda")
    return _python(*fixed, *options, dry=["--device", DEVICE, *dry.split()])


def _tests(name: str, option: str, about: str) -> Part:
    fixed = ("-m", "pytest", "-m", "gpu", "-q", "--continue-on-collection-errors")
    fixed += ("-p", "no:cacheprovider", f"--junitxml={RESULTS}/{name}.xml")
    command = _python(*fixed, option, dry=["--collect-only"])
    return Part(name, about, [command], 540, modules=("pytest",))


_OP_DRY = "--quick --max-mb 0.1 --seconds 0.001 --threads 1 --layout nhwc"
_OP_DRY += " --providers fused fused_graph plain copy"
_OP = ("--layout", "nchw", "nhwc", "--cache", "cold", "hot", "--seconds", "0.06")
_OP_PROVIDERS = ("--providers", "fused", "fused_graph", "plain", "compile", "compile_graph", "copy")
_BENCHMARK_MODULES = ("tabulate", "tqdm", "numpy")


def _op(program: str, *options: str, dry: str = "--rows 23") -> Command:
    fixed = (*_OP, *_OP_PROVIDERS, "--budget", BUDGET)
    return _benchmark(program, *fixed, *options, dry=f"{_OP_DRY} {dry}")


def _tune(layout: str, *options: str) -> Command:
    fixed = ("-m", "seblock_cuda.__main__", "tune", "--workloads", "benchmarks/workloads.csv")
    fixed += ("--dtype", "bfloat16", "--plans", f"{RESULTS}/plans.json")
    words = (*fixed, "--table", f"{RESULTS}/tune_{layout}.txt", "--budget", BUDGET, *options)
    return _python(*words, dry=["--budget", "0"], on_gpu=True)


def parts(architecture: str) -> dict[str, Part]:
    """Every part by name, in the order of running.

    Args:
        architecture: what to compile for, e.g. "9.0".
    """
    sanitized = _python("-m", "tests.sanitized_shapes", dry=["--device", DEVICE, "--few"])
    residual = ("--residual", "1", "--network", *RESIDUAL_NETWORKS)
    all_parts = [
        Part(
            "build",
            "compiles in place with what is here, no network",
            [_python("setup.py", "build_ext", "--inplace", on_gpu=True)],
            540,
            modules=("setuptools",),  # setup.py finds the rest in more places, and says where
            environment={"SEBLOCK_WITH_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architecture},
        ),
        _tests("test", f"--ignore={STRATEGIES}", "every test marked gpu but the next part's"),
        _tests("strategies", STRATEGIES, "every strategy by force, on many shapes"),
        Part(
            "sanitize",
            "compute-sanitizer on a small set of shapes",
            [
                sanitized,
                *(_sanitizer(tool, sanitized) for tool in SANITIZERS),
            ],
            540,
            environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            equal_shares=True,
        ),
        Part(
            "tune",
            "the plans of this GPU, and how good the rule is",
            [_tune("nhwc", "--channels-last"), _tune("nchw")],
            120,
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
                    dry="--quick --threads 1 --mode eager --network mobilenetv3_large_100",
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


def fill(command: Command, results: Path, budget: float, dry_run: str | None) -> list[str]:
    """A command's words with its folder, its seconds and a dry run's device put in."""
    words = [*command.words, *(command.dry if dry_run else ())]
    values = {RESULTS: str(results), BUDGET: f"{max(1, budget):.0f}", DEVICE: dry_run or ""}
    for mark, value in values.items():
        words = [word.replace(mark, value) for word in words]
    return words
