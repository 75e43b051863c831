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
BORDERS: Shape = (3, 24, (9, 9), 5)  # planes that start between two vectors
SMALL: Shape = (2, 200, (7, 7), 5)  # planes of few vectors, in several rounds
CHUNKS: Shape = (3, 8, (50, 50), 5)  # several warps to a plane
PARTS: Shape = (2, 8, (100, 100), 3)  # several blocks to a sum
ODD: Shape = (1, 13, (5, 11), 3)  # the tensor ends in the middle of a vector
TILES: Shape = (9, 264, (4, 4), 70)  # two groups of samples, several tiles of outputs
WIDE: Shape = (9, 520, (3, 3), 6)  # more inputs than shared memory holds
SAMPLES: Shape = (33, 16, (4, 4), 3)  # more than are in shared memory at a time
STRIPS: Shape = (3, 64, (24, 40), 8)  # several tasks to a sample
KEPT: Shape = (3, 64, (20, 20), 8)  # a sample fits in shared memory

# Strategy stream squeezes as little ahead as it can.
FORCED = {"stream": kernels.Forced(lag=1, blocks=4)}


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
    driver: str,
    file: str,
    shape: Shape,
    layout: str,
    guard: Callable[..., str],
    message: str,
    *replacements: tuple[str, str],
) -> Case:
    mutant = mutants.Mutant(name, f"{driver}.cu", file, replacements)
    strategy = driver if driver in kernels.STRATEGIES else "split"
    return Case(mutant, shape, layout, guard, message, strategy)


CASES = [
    # ---- squeeze
    case(
        "x read twice by the squeeze",
        "split",
        "kernels/squeeze.cuh",
        STRIPS,
        "nhwc",
        guards.traffic,
        "bytes read again in one launch",
        (
            "loaded[u] = source_.template load<kAligned>(place_of(first + u));",
            "source_.template load<kAligned>(place_of(first + u)),\n"
            "          loaded[u] = source_.template load<kAligned>(place_of(first + u));",
        ),
    ),
    case(
        "no barrier between the rows' sums",
        "split",
        "kernels/squeeze.cuh",
        STRIPS,
        "nhwc",
        guards.traffic,
        "of shared memory, ",
        (
            "    sync_threads();\n    const auto flat = shared_memory<acc_t>();\n",
            "    const auto flat = shared_memory<acc_t>();\n",
        ),
    ),
    case(
        "no barrier between the rows' sums, by schedule",
        "split",
        "kernels/squeeze.cuh",
        STRIPS,
        "nhwc",
        guards.schedules,
        "other bits in",
        (
            "    sync_threads();\n    const auto flat = shared_memory<acc_t>();\n",
            "    const auto flat = shared_memory<acc_t>();\n",
        ),
    ),
    case(
        "a barrier in a branch",
        "split",
        "kernels/squeeze.cuh",
        BORDERS,
        "nhwc",
        guards.schedules,
        "divergence",
        (
            "    sync_threads();\n    const auto flat = shared_memory<acc_t>();\n",
            "    if (group < groups) sync_threads();\n"
            "    const auto flat = shared_memory<acc_t>();\n",
        ),
    ),
    case(
        "the last row left out",
        "split",
        "kernels/squeeze.cuh",
        STRIPS,
        "nhwc",
        guards.values,
        "pooled:",
        (
            "const int mine = active ? rows - group : 0;",
            "const int mine = active ? rows - 1 - group : 0;",
        ),
    ),
    case(
        "a border element in both planes",
        "split",
        "kernels/squeeze.cuh",
        BORDERS,
        "nchw",
        guards.values,
        "pooled:",
        ("vector * kL + e >= p.end)", "vector * kL + e > p.end)"),
    ),
    case(
        "the sum of a wrong lane",
        "split",
        "device/math.cuh",
        BORDERS,
        "nchw",
        guards.values,
        "pooled:",
        ("value += shuffle_xor(value, mask);", "value += shuffle_xor(value, mask ^ 1);"),
    ),
    case(
        "no barrier between the chunks",
        "split",
        "kernels/squeeze.cuh",
        CHUNKS,
        "nchw",
        guards.traffic,
        "of shared memory, which nobody has written",
        ("scratch[piece] = sum;\n    sync_threads();", "scratch[piece] = sum;"),
    ),
    case(
        "a chunk left out",
        "split",
        "kernels/squeeze.cuh",
        CHUNKS,
        "nchw",
        guards.values,
        "pooled:",
        ("for (int i = 0; i < tiling_.chunks; ++i)", "for (int i = 1; i < tiling_.chunks; ++i)"),
    ),
    case(
        "a sum not written",
        "split",
        "kernels/squeeze.cuh",
        EVEN,
        "nchw",
        guards.traffic,
        "of workspace, which nobody has written",
        ("if (active && lane == 0) sums_.put", "if (active && lane == 0 && plane > 0) sums_.put"),
    ),
    case(
        "a part in the place of another",
        "split",
        "kernels/squeeze.cuh",
        PARTS,
        "nchw",
        guards.traffic,
        "of workspace, written by thread",
        ("sums_.put(part, sample_, mine, total);", "sums_.put(0, sample_, mine, total);"),
    ),
    case(
        "no barrier before the next small planes",
        "split",
        "kernels/squeeze.cuh",
        SMALL,
        "nchw",
        guards.traffic,
        "of shared memory, ",
        ("if (begin > int64_t{strip} * tiling_.planes) sync_threads();", ""),
    ),
    case(
        "no barrier after the small planes",
        "split",
        "kernels/squeeze.cuh",
        SMALL,
        "nchw",
        guards.schedules,
        "other bits in",
        ("      sync_threads();\n      const int lead", "      const int lead"),
    ),
    case(
        "small planes counted from a vector",
        "split",
        "kernels/squeeze.cuh",
        SMALL,
        "nchw",
        guards.values,
        "pooled:",
        ("flat[lead + i * s + j]", "flat[i * s + j]"),
    ),
    case(
        "shared memory too small",
        "split",
        "kernels/squeeze.cuh",
        SMALL,
        "nchw",
        guards.traffic,
        "of shared memory, which has 16128 bytes",
        (
            "constexpr int kSqueezeShared = 2 * kStagedBytes;",
            "constexpr int kSqueezeShared = 2 * kStagedBytes - 256;",
        ),
    ),
    case(
        "a vector of dresidual with two writers",
        "split",
        "kernels/squeeze.cuh",
        BORDERS,
        "nchw",
        guards.traffic,
        "of dresidual, written by",
        ("inside(first + u) && owns(first + u), term", "inside(first + u), term"),
    ),
    case(
        "one element read beyond x",
        "split",
        "device/vec.cuh",
        ODD,
        "nchw",
        guards.traffic,
        "reads 2 bytes at byte 1430 of x, which has 1430 bytes",
        (
            "if (e >= place.valid) continue;\n      before_load",
            "if (e > place.valid) continue;\n      before_load",
        ),
    ),
    # ---- reduce and expand
    case(
        "no barrier before the inputs are used",
        "split",
        "kernels/product.cuh",
        EVEN,
        "nchw",
        guards.traffic,
        "of shared memory, ",
        ("keeper_ && first_tile);\n        sync_threads();", "keeper_ && first_tile);"),
    ),
    case(
        "no barrier before the next inputs",
        "split",
        "kernels/product.cuh",
        WIDE,
        "nchw",
        guards.traffic,
        "of shared memory, ",
        ("if (!first_tile || begin > 0) sync_threads();", ""),
    ),
    case(
        "no barrier between the columns' sums",
        "split",
        "kernels/product.cuh",
        TILES,
        "nchw",
        guards.traffic,
        "reduce gradient: ",
        ("        sync_threads();\n        for (int item", "        for (int item"),
    ),
    case(
        "no barrier before the next columns' sums",
        "split",
        "kernels/product.cuh",
        TILES,
        "nchw",
        guards.traffic,
        "of shared memory, written by",
        ("if (round > 0 || tile > first_tile) sync_threads();", ""),
    ),
    case(
        "an input left out",
        "split",
        "kernels/product.cuh",
        TILES,
        "nhwc",
        guards.values,
        ": error",
        ("if (i + u * groups >= count) break;", "if (u == 7 || i + u * groups >= count) break;"),
    ),
    case(
        "the sum of another row",
        "split",
        "kernels/product.cuh",
        TILES,
        "nhwc",
        guards.values,
        "y: error",
        (
            "stage_.output(sample_ + g, row, mine)",
            "stage_.output(sample_ + g, height - 1 - row, mine)",
        ),
    ),
    case(
        "pooled written by every tile",
        "split",
        "drivers/split.cuh",
        TILES,
        "nchw",
        guards.traffic,
        "of pooled, written by",
        ("samples, task.index == 0)", "samples, true)"),
    ),
    case(
        "more samples than there are",
        "split",
        "drivers/split.cuh",
        TILES,
        "nchw",
        guards.traffic,
        "which has",
        ("left < p.group ? static_cast<int>(left) : p.group", "p.group"),
    ),
    case(
        "weights read for every sample",
        "split",
        "drivers/split.cuh",
        TILES,
        "nchw",
        guards.traffic,
        "forward: weights: counted",
        ("stage.shape.n, plan.group, Divisor32", "stage.shape.n, 1, Divisor32"),
        ("ceil_div(stage.shape.n, plan.group) * tiles", "stage.shape.n * tiles"),
        ("stage.deal.tiles(stage.height(), plan.group)", "stage.deal.tiles(stage.height(), 1)"),
    ),
    case(
        "a part left out",
        "split",
        "kernels/reduce.cuh",
        PARTS,
        "nchw",
        guards.traffic,
        "forward: small: counted",
        (
            "sum_in_chains<acc_t>(parts, [&](int part) { return sums.get(part, index); }) /",
            "sum_in_chains<acc_t>(1, [&](int part) { return sums.get(part, index); }) /",
        ),
    ),
    case(
        "the activation's slope left out",
        "split",
        "kernels/reduce.cuh",
        TILES,
        "nchw",
        guards.values,
        ": error",
        ("through_slope(activation, dhidden, slope)", "dhidden"),
    ),
    case(
        "a bias left out",
        "split",
        "kernels/expand.cuh",
        TILES,
        "nchw",
        guards.values,
        "y: error",
        ("const acc_t z2 = bias ? sum + bias.at(o) : sum;", "const acc_t z2 = sum;"),
    ),
    case(
        "the mean left out",
        "split",
        "kernels/expand.cuh",
        TILES,
        "nchw",
        guards.values,
        "dx: error",
        ("dpooled / static_cast<acc_t>(shape.s)", "dpooled"),
    ),
    # ---- scale
    case(
        "x read twice by the scale",
        "split",
        "kernels/scale.cuh",
        EVEN,
        "nchw",
        guards.traffic,
        "forward: x: 8192 bytes read again in one launch",
        (
            "map_.template load_in<kAligned>(place_of(first + u), loaded[u]);",
            "map_.template load_in<kAligned>(place_of(first + u), loaded[u]);\n"
            "        map_.template load_in<kAligned>(place_of(first + u), loaded[u]);",
        ),
    ),
    case(
        "one more launch that reads x",
        "split",
        "drivers/split.cuh",
        EVEN,
        "nhwc",
        guards.traffic,
        "forward: x: counted 32768, the plan states 24576",
        (
            "launch_product(pass.expand, plan, stream);",
            "launch_product(pass.expand, plan, stream);\n"
            "  launch<Squeezing<Source>>(\n"
            "      Source::kName, squeeze_kernel<kAligned, kLayout, Source>,\n"
            "      n * pass.tiling.strips, kSqueezeShared, stream, pass);",
        ),
    ),
    case(
        "the gates of other channels",
        "split",
        "kernels/scale.cuh",
        STRIPS,
        "nhwc",
        guards.values,
        "y: error",
        ("map_.four_factors(channel + first, four);", "map_.four_factors(channel, four);"),
    ),
    case(
        "the gate of the plane before",
        "split",
        "kernels/scale.cuh",
        BORDERS,
        "nchw",
        guards.values,
        "y: error",
        ("e < start.left ? one : two", "e <= start.left ? one : two"),
    ),
    case(
        "one vector beyond x",
        "split",
        "kernels/scale.cuh",
        EVEN,
        "nchw",
        guards.traffic,
        "reads 16 bytes at byte 8192 of x, which has 8192 bytes",
        ("first + u * kBlockThreads < count; };", "first + u * kBlockThreads <= count; };"),
    ),
    case(
        "a vector of y not written",
        "split",
        "kernels/scale.cuh",
        EVEN,
        "nchw",
        guards.values,
        "y: error nan",
        (
            "store_vector<kAligned, Use::last>(y,",
            "if (place.vector) store_vector<kAligned, Use::last>(y,",
        ),
    ),
    case(
        "the mask of the vector beside it",
        "split",
        "kernels/scale.cuh",
        EVEN,
        "nhwc",
        guards.traffic,
        "of mask, which has",
        ("store(mask + place.vector,", "store(mask + place.vector + 1,"),
    ),
    case(
        "lanes that are not neighbours",
        "split",
        "kernels/scale.cuh",
        STRIPS,
        "nchw",
        guards.traffic,
        "forward: sector efficiency 0.",
        ("kTaskVectors + thread_index();", "kTaskVectors + kVectors * thread_index();"),
        ("first + u * kBlockThreads < count", "first + u < count"),
        (
            "const offset_t vector = first + u * kBlockThreads;",
            "const offset_t vector = first + u;",
        ),
        ("(first + u * kBlockThreads) * kL", "(first + u) * kL"),
    ),
    case(
        "a gradient without its shift",
        "split",
        "kernels/scale.cuh",
        EVEN,
        "nchw",
        guards.values,
        "dx: error",
        ("fused_multiply_add(value[e], factor.gate, factor.shift)", "value[e] * factor.gate"),
    ),
    # ---- gradients
    case(
        "no barrier after the tile is written",
        "gradients",
        "kernels/gradients.cuh",
        EVEN,
        "nchw",
        guards.traffic,
        "of shared memory, which nobody has written",
        ("    sync_threads();\n    load_step(begin", "    load_step(begin"),
    ),
    case(
        "no barrier before the next tile",
        "gradients",
        "kernels/gradients.cuh",
        SAMPLES,
        "nchw",
        guards.traffic,
        "of shared memory, ",
        ("if (begin > 0) sync_threads();", ""),
    ),
    case(
        "a sample left out",
        "gradients",
        "kernels/gradients.cuh",
        SAMPLES,
        "nchw",
        guards.values,
        "dreduce_weight: error",
        ("const bool inside = n < p.shape.n;", "const bool inside = n + 1 < p.shape.n;"),
    ),
    case(
        "a tile by columns",
        "gradients",
        "kernels/gradients.cuh",
        EVEN,
        "nchw",
        guards.traffic,
        "bank conflicts",
        (
            "(first + k * (kBlockThreads / kGradientTile)) * kGradientTile + lane;",
            "lane * kGradientSamples + first + k * (kBlockThreads / kGradientTile);",
        ),
        ("dz_tile[n * kGradientTile + y + 16 * i]", "dz_tile[(y + 16 * i) * kGradientSamples + n]"),
        (
            "other_tile[n * kGradientTile + x + 16 * i]",
            "other_tile[(x + 16 * i) * kGradientSamples + n]",
        ),
    ),
    # ---- stream
    case(
        "no wait for the gates",
        "stream",
        "drivers/stream.cuh",
        STRIPS,
        "nchw",
        guards.schedules,
        "other bits in",
        ("if (thread_index() == 0) await(p.ready + sample, 1);", ""),
    ),
    case(
        "a wait for more than comes",
        "stream",
        "drivers/stream.cuh",
        STRIPS,
        "nhwc",
        guards.values,
        "stuck wait",
        ("await(p.ready + sample, 1);", "await(p.ready + sample, 2);"),
    ),
    case(
        "products before the last squeeze",
        "stream",
        "drivers/stream.cuh",
        STRIPS,
        "nhwc",
        guards.schedules,
        "other bits in y",
        ("if (board[1] + 1 <", "if (board[1] + 2 <"),
    ),
    case(
        "gates that are not published",
        "stream",
        "drivers/stream.cuh",
        STRIPS,
        "nchw",
        guards.values,
        "stuck wait",
        ("if (thread_index() == 0) publish(", "if (thread_index() == 0 && sample > 0) publish("),
    ),
    case(
        "published without a release",
        "stream",
        "drivers/stream.cuh",
        STRIPS,
        "nchw",
        guards.schedules,
        "of gate, written by",
        ("publish(p.ready + sample)", "take_ticket(p.ready + sample)"),
    ),
    case(
        "published before the products",
        "stream",
        "drivers/stream.cuh",
        STRIPS,
        "nchw",
        guards.schedules,
        "other bits in y",
        (
            "    products_of_sample(pass.reduce, pass.expand, sample);\n"
            "    if (thread_index() == 0) publish(p.ready + sample);",
            "    if (thread_index() == 0) publish(p.ready + sample);\n"
            "    products_of_sample(pass.reduce, pass.expand, sample);",
        ),
    ),
    case(
        "counted without a barrier",
        "stream",
        "drivers/stream.cuh",
        STRIPS,
        "nhwc",
        guards.schedules,
        "of workspace, written by thread",
        (
            "squeeze.template run<kLayout>(ticket.task);\n    sync_threads();",
            "squeeze.template run<kLayout>(ticket.task);",
        ),
    ),
    case(
        "no barrier after the wait",
        "stream",
        "drivers/stream.cuh",
        STRIPS,
        "nchw",
        guards.schedules,
        "divergence",
        ("await(p.ready + sample, 1);\n        sync_threads();", "await(p.ready + sample, 1);"),
    ),
    case(
        "a wait without an acquire",
        "stream",
        "device/platform_simt.cuh",
        STRIPS,
        "nhwc",
        guards.schedules,
        "of gate, written by",
        (
            "simt::spin();\n  simt::access(counter, sizeof *counter, simt::Access::acquire);",
            "simt::spin();",
        ),
    ),
    case(
        "the last squeeze without an acquire",
        "stream",
        "device/platform_simt.cuh",
        STRIPS,
        "nchw",
        guards.schedules,
        "of workspace, written by",
        (
            "(*counter)++;\n  simt::access(counter, sizeof *counter, simt::Access::acquire);",
            "(*counter)++;",
        ),
    ),
    case(
        "no barrier before the next ticket",
        "stream",
        "drivers/stream.cuh",
        STRIPS,
        "nchw",
        guards.traffic,
        "of shared memory, ",
        ("    sync_threads();  // what the last task has in shared memory is done with\n", ""),
    ),
    case(
        "no barrier after the count",
        "stream",
        "drivers/stream.cuh",
        STRIPS,
        "nchw",
        guards.traffic,
        "of shared memory, ",
        ("= arrive(p.squeezed + sample);\n    sync_threads();", "= arrive(p.squeezed + sample);"),
    ),
    case(
        "scales far behind",
        "stream",
        "drivers/stream.cuh",
        STRIPS,
        "nchw",
        guards.traffic,
        "bytes later",
        ("Tickets(pass.shape.n, plan.lag,", "Tickets(pass.shape.n, pass.shape.n,"),
    ),
    case(
        "x read twice by the scale, in stream",
        "stream",
        "kernels/scale.cuh",
        STRIPS,
        "nhwc",
        guards.traffic,
        "bytes read again in one launch",
        (
            "map_.template load_in<kAligned>(place_of(first + u), loaded[u]);",
            "map_.template load_in<kAligned>(place_of(first + u), loaded[u]);\n"
            "        map_.template load_in<kAligned>(place_of(first + u), loaded[u]);",
        ),
    ),
    # ---- resident
    case(
        "x read again for the scale",
        "resident",
        "drivers/resident.cuh",
        KEPT,
        "nchw",
        guards.traffic,
        "bytes read again in one launch",
        ("loaded.in = kept[place.vector];", "Map::template load_in<kAligned>(place, loaded);"),
    ),
    case(
        "no barrier between the strips",
        "resident",
        "drivers/resident.cuh",
        KEPT,
        "nhwc",
        guards.traffic,
        "of shared memory, ",
        (
            "squeeze.template run<kLayout>(strip);\n    sync_threads();",
            "squeeze.template run<kLayout>(strip);",
        ),
    ),
    case(
        "x kept where the sums are",
        "resident",
        "drivers/resident.cuh",
        KEPT,
        "nhwc",
        guards.values,
        "y: error",
        (
            "shared_memory<Vector<scalar_t>>() + kScratchBytes / kAccessBytes;",
            "shared_memory<Vector<scalar_t>>();",
        ),
    ),
    case(
        "kept by every thread",
        "resident",
        "drivers/resident.cuh",
        BORDERS,
        "nchw",
        guards.traffic,
        "of shared memory, ",
        ("if (owner) kept[", "kept["),
    ),
    case(
        "dy kept as it was before the mask",
        "resident",
        "drivers/resident.cuh",
        KEPT,
        "nchw",
        guards.values,
        "dx: error",
        (
            "    source.template terms<kAligned>(loaded, place, owner, out);\n"
            "    if (owner) kept[place.vector] = loaded.kept();",
            "    if (owner) kept[place.vector] = loaded.kept();\n"
            "    source.template terms<kAligned>(loaded, place, owner, out);",
        ),
    ),
    case(
        "shared memory of another sample",
        "resident",
        "drivers/resident.cuh",
        KEPT,
        "nchw",
        guards.traffic,
        "of shared memory, which has",
        ("plan.shared_bytes, stream, pass", "plan.shared_bytes - 16, stream, pass"),
    ),
    case(
        "no barrier between the products",
        "resident",
        "kernels/product.cuh",
        KEPT,
        "nchw",
        guards.traffic,
        "of shared memory, read by",
        (
            ".run(0, reduce.tiles);\n  sync_threads();",
            ".run(0, reduce.tiles);",
        ),
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
        shape, torch.bfloat16, layout, weight_dtype=torch.float32, bias=True, tail="add_relu"
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.mutant.name)
def test_the_guard_goes_red(modules: dict[str, Future[Path]], case: Case) -> None:
    module = kernels.load(modules[case.mutant.name].result())
    problem = problem_of(case.shape, case.layout)
    forced = FORCED.get(case.strategy, kernels.AS_PLANNED)
    message = case.guard(module, problem, strategy=case.strategy, forced=forced)
    assert case.message in message, message or "the guard saw nothing"


@pytest.mark.parametrize("strategy", kernels.STRATEGIES)
@pytest.mark.parametrize(
    ("shape", "layout"), sorted({(case.shape, case.layout) for case in CASES}), ids=str
)
def test_the_unbroken_kernels_pass_every_guard(
    modules: dict[str, Future[Path]], shape: Shape, layout: str, strategy: str
) -> None:
    module = kernels.load(modules["base"].result())
    problem = problem_of(shape, layout)
    forced = FORCED.get(strategy, kernels.AS_PLANNED)
    try:
        audit.plans_of(problem, strategy, forced)
    except ValueError as reason:
        pytest.skip(str(reason))
    assert guards.traffic(module, problem, strategy, forced) == ""
    assert guards.values(module, problem, strategy, forced) == ""
    assert guards.schedules(module, problem, range(1, 4), strategy, forced) == ""
