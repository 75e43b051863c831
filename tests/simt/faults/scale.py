"""Faults of the scale."""

from __future__ import annotations

from tests.simt import guards
from tests.simt.faults import BORDERS, EVEN, STRIPS, case

CASES = [
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
]
