"""Every guard is shown to work: kernels broken on purpose, and the guard that goes red."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests import cases
from tests.simt import audit, build, guards, kernels, mutants

Shape = tuple[int, int, tuple[int, ...], int]

EVEN: Shape = (2, 32, (8, 8), 5)
PLANES: Shape = (2, 24, (7, 7), 5)  # planes that start between two vectors
ODD: Shape = (1, 13, (5, 11), 3)  # the tensor ends in the middle of a vector
ROWS: Shape = (2, 24, (9, 9), 5)
SLICES: Shape = (3, 64, (24, 40), 8)  # several slices, groups and tasks of strategy T
SAMPLES: Shape = (33, 16, (4, 4), 3)  # more than one tile of samples


@dataclass(frozen=True)
class Case:
    mutant: mutants.Mutant
    shape: Shape
    layout: str
    guard: Callable[..., str]
    message: str  # a part of what the guard says
    strategy: str


def case(
    name: str,
    launcher: str,
    file: str,
    shape: Shape,
    layout: str,
    guard: Callable[..., str],
    message: str,
    *replacements: tuple[str, str],
) -> Case:
    mutant = mutants.Mutant(name, launcher, file, replacements)
    strategy = "stream" if launcher.endswith("_stream.cu") else "split"
    return Case(mutant, shape, layout, guard, message, strategy)


LOAD_X = "if (i + kVec <= total) load(p.map.in + i, values[u]);"
HALVING = "    sync_threads();\n    if (group < half) {"
TILE_BARRIER = "    sync_threads();\n    for (int n = 0; n < kTile; ++n) {"

CASES = [
    case(
        "x read twice by the scale",
        "forward_split.cu",
        "kernels/scale.cuh",
        EVEN,
        "nchw",
        guards.traffic,
        "forward: x: 8192 bytes read again in one launch",
        (LOAD_X, LOAD_X.replace("load(", "load(p.map.in + i, values[u]), load(")),
    ),
    case(
        "one more launch that reads x",
        "forward_split.cu",
        "kernels/scale.cuh",
        EVEN,
        "nhwc",
        guards.traffic,
        "forward: x: counted 24576, the plan states 16384",
        (
            "Layout::nhwc, kVec>, blocks, 0, stream, params);",
            "Layout::nhwc, kVec>, blocks, 0, stream, params);\n"
            "launch(Map::kName, scale_kernel<Map, Layout::nhwc, kVec>, blocks, 0, stream, params);",
        ),
    ),
    case(
        "no barrier between the halvings",
        "forward_split.cu",
        "kernels/squeeze.cuh",
        ROWS,
        "nhwc",
        guards.traffic,
        "of shared memory, ",
        (HALVING, HALVING.split("\n")[1]),
    ),
    case(
        "no barrier between the halvings, by schedule",
        "forward_split.cu",
        "kernels/squeeze.cuh",
        ROWS,
        "nhwc",
        guards.schedules,
        "other bits in",
        (HALVING, HALVING.split("\n")[1]),
    ),
    case(
        "no barrier after the tile is written",
        "weight_grad.cu",
        "kernels/weight_grad.cuh",
        EVEN,
        "nchw",
        guards.traffic,
        "of shared memory, which nobody has written",
        (TILE_BARRIER, TILE_BARRIER.split("\n")[1]),
    ),
    case(
        "no barrier before the next tile",
        "weight_grad.cu",
        "kernels/weight_grad.cuh",
        SAMPLES,
        "nchw",
        guards.traffic,
        "of shared memory, written by thread 0 of block 0: nothing orders the two",
        ("    sync_threads();\n    for (int k = 0;", "    for (int k = 0;"),
    ),
    case(
        "a barrier in a branch",
        "forward_split.cu",
        "kernels/squeeze.cuh",
        ROWS,
        "nhwc",
        guards.schedules,
        "divergence",
        (HALVING, "    if (group < half) {\n      sync_threads();"),
    ),
    case(
        "the last vector read whole",
        "forward_split.cu",
        "kernels/scale.cuh",
        ODD,
        "nchw",
        guards.traffic,
        "scale(x): block 0: thread 89: reads 16 bytes at byte 1424 of x, which has",
        (LOAD_X, LOAD_X.replace("i + kVec <=", "i <")),
    ),
    case(
        "one element read beyond x",
        "forward_split.cu",
        "kernels/squeeze.cuh",
        ODD,
        "nchw",
        guards.traffic,
        "reads 2 bytes at byte 1430 of x, which has 1430 bytes",
        ("begin : i; j < end; ++j)", "begin : i; j <= end; ++j)"),
    ),
    case(
        "one vector written beyond y",
        "forward_split.cu",
        "kernels/scale.cuh",
        EVEN,
        "nchw",
        guards.traffic,
        "writes 16 bytes at byte 8192 of y, which has 8192 bytes",
        ("store(p.out + i, values[u]);", "store(p.out + i + kVec, values[u]);"),
    ),
    case(
        "a vector of y not written",
        "forward_split.cu",
        "kernels/scale.cuh",
        EVEN,
        "nchw",
        guards.values,
        "y: error nan",
        ("store(p.out + i, values[u]);", "if (i) store(p.out + i, values[u]);"),
    ),
    case(
        "a sum not written",
        "forward_split.cu",
        "kernels/squeeze.cuh",
        PLANES,
        "nchw",
        guards.traffic,
        "excite: reduce: block 0: thread 23: reads 4 bytes at byte 188 of workspace, "
        "which nobody has written",
        ("if (active && lane == 0)", "if (plane + 1 < planes && lane == 0)"),
    ),
    case(
        "the sum of a wrong lane",
        "forward_split.cu",
        "device/math.cuh",
        PLANES,
        "nchw",
        guards.values,
        "pooled:",
        ("shuffle_xor(value, mask);", "shuffle_xor(value, mask ^ 1);"),
    ),
    case(
        "shared memory too small",
        "forward_split.cu",
        "kernels/squeeze.cuh",
        ROWS,
        "nhwc",
        guards.traffic,
        "of shared memory, which has 4096 bytes",
        ("kBlockThreads * kVec * sizeof(acc_t)", "kBlockThreads * kVec * sizeof(acc_t) / 2"),
    ),
    case(
        "lanes that are not neighbours",
        "forward_split.cu",
        "kernels/scale.cuh",
        EVEN,
        "nchw",
        guards.traffic,
        "forward: sector efficiency 0.6",
        (
            "(block * kScaleVectors * kBlockThreads + thread_index()) * kVec",
            "(block * kBlockThreads + thread_index()) * kScaleVectors * kVec",
        ),
        ("kStep = int64_t{kBlockThreads} * kVec", "kStep = kVec"),
    ),
    case(
        "a border element in both planes",
        "forward_split.cu",
        "kernels/squeeze.cuh",
        PLANES,
        "nchw",
        guards.values,
        "pooled:",
        ("&& i + e < end ?", "&& i + e <= end ?"),
    ),
    case(
        "no wait for the other slices",
        "forward_stream.cu",
        "kernels/stream.cuh",
        SLICES,
        "nchw",
        guards.schedules,
        "other bits in y",
        ("if (!alone && thread_index() == 0) {\n        await", "if (false) {\n        await"),
    ),
    case(
        "a wait for one slice too few",
        "forward_stream.cu",
        "kernels/stream.cuh",
        SLICES,
        "nhwc",
        guards.schedules,
        "other bits in",
        (
            "plan.channel_slices * plan.row_slices);\n      }",
            "plan.channel_slices * plan.row_slices - 1);\n      }",
        ),
    ),
    case(
        "a slice that is not published",
        "forward_stream.cu",
        "kernels/stream.cuh",
        SLICES,
        "nchw",
        guards.values,
        "stuck wait",
        (
            "if (!alone && thread_index() == 0) publish",
            "if (ticket && thread_index() == 0) publish",
        ),
    ),
    case(
        "published before it is written",
        "backward_stream.cu",
        "kernels/stream.cuh",
        SLICES,
        "nchw",
        guards.schedules,
        "other bits in",
        ("      ahead.squeeze();\n      sync_threads();\n", ""),
        (
            "publish(p.counters + 1 + ahead.group());\n",
            "publish(p.counters + 1 + ahead.group());\n"
            "      ahead.squeeze();\n      sync_threads();\n",
        ),
    ),
    case(
        "published without a release",
        "forward_stream.cu",
        "kernels/stream.cuh",
        SLICES,
        "nchw",
        guards.schedules,
        "of workspace, written by thread",
        ("publish(p.counters", "take_ticket(p.counters"),
    ),
    case(
        "published without a barrier",
        "forward_stream.cu",
        "kernels/stream.cuh",
        SLICES,
        "nhwc",
        guards.schedules,
        "other bits in",
        ("      ahead.squeeze();\n      sync_threads();\n", "      ahead.squeeze();\n"),
    ),
    case(
        "no barrier after the wait",
        "backward_stream.cu",
        "kernels/stream.cuh",
        SLICES,
        "nchw",
        guards.schedules,
        "other bits in",
        ("      sync_threads();\n      behind.excite();", "      behind.excite();"),
    ),
    case(
        "a wait without an acquire",
        "backward_stream.cu",
        "device/platform_simt.cuh",
        SLICES,
        "nhwc",
        guards.schedules,
        "of workspace, written by thread",
        ("  simt::access(counter, sizeof *counter, simt::Access::acquire);\n", ""),
    ),
    case(
        "x read from memory for the scale, and once more",
        "forward_stream.cu",
        "kernels/pass.cuh",
        SLICES,
        "nhwc",
        guards.traffic,
        "bytes read again in one launch",
        (
            "loaded.x = load_packed<Use::last>(x + i);",
            "load_packed<Use::last>(x + i), loaded.x = load_packed<Use::last>(x + i);",
        ),
    ),
    case(
        "no barrier before the sums are projected",
        "forward_stream.cu",
        "kernels/stream.cuh",
        SLICES,
        "nchw",
        guards.traffic,
        "of shared memory, read by several threads",
        ("    sync_threads();\n    project_in();", "    project_in();"),
    ),
    case(
        "the mask of the vector beside it",
        "forward_stream.cu",
        "kernels/pass.cuh",
        SLICES,
        "nchw",
        guards.traffic,
        "of mask, which has",
        ("store(mask + i / kVec,", "store(mask + i / kVec + 1,"),
    ),
    case(
        "a tile by columns",
        "weight_grad.cu",
        "kernels/weight_grad.cuh",
        EVEN,
        "nchw",
        guards.traffic,
        "bank conflicts",
        ("dz_tile[(first_row + k) * kTile + lane] =", "dz_tile[lane * kTile + first_row + k] ="),
        ("dz_tile[n * kTile + first_row + k];", "dz_tile[(first_row + k) * kTile + n];"),
    ),
]


@pytest.fixture(scope="module")
def modules(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Path]]]:
    """Builds the unbroken kernels and every selected mutant, one per core at a time."""
    try:
        base = mutants.build_base()
    except build.MissingTool as reason:
        pytest.skip(str(reason))
    selected = [item.callspec.params.get("case") for item in request.session.items
                if item.path == request.path and hasattr(item, "callspec")]  # fmt: skip
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        built = {
            case.mutant.name: pool.submit(mutants.build_mutant, case.mutant, base)
            for case in filter(None, selected)
        }
        built["base"] = pool.submit(lambda: base)
        yield built
        pool.shutdown(cancel_futures=True)


def problem_of(shape: Shape, layout: str) -> cases.Problem:
    return cases.make_problem(
        shape,
        torch.bfloat16,
        layout,
        weight_dtype=torch.float32,
        bias=True,
        tail="add_relu" if shape == SLICES else None,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.mutant.name)
def test_the_guard_goes_red(modules: dict[str, Future[Path]], case: Case) -> None:
    module = kernels.load(modules[case.mutant.name].result())
    message = case.guard(module, problem_of(case.shape, case.layout), strategy=case.strategy)
    assert case.message in message, message or "the guard saw nothing"


@pytest.mark.parametrize("strategy", kernels.STRATEGIES)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", [EVEN, PLANES, ODD, ROWS, SAMPLES, SLICES], ids=str)
def test_the_unbroken_kernels_pass_every_guard(
    modules: dict[str, Future[Path]], shape: Shape, layout: str, strategy: str
) -> None:
    if layout == "nhwc" and shape[1] % 8:
        pytest.skip("needs one-element accesses, which this build leaves out")
    module = kernels.load(modules["base"].result())
    problem = problem_of(shape, layout)
    try:
        audit.plan_of(module, problem, strategy)
    except ValueError as reason:
        pytest.skip(str(reason))
    assert guards.traffic(module, problem, strategy) == ""
    assert guards.values(module, problem, strategy) == ""
    assert guards.schedules(module, problem, range(1, 4), strategy) == ""
