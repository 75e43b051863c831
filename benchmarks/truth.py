"""What this device can do, and what the rivals launch on it: the figures that all others rest on.

    python -m benchmarks.truth --results out/results

Copy bandwidth by size, the bandwidth of reads that hit L2, and the kernels of plain PyTorch and
torch.compile for one layer, in both layouts and directions, with their times. Writes `truth.json`
and `truth.md`. On a CPU: the copies, and what memory costs that the allocator has fresh.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks import timing
from benchmarks.options import choose_device
from benchmarks.problems import LAYOUTS, Problem
from benchmarks.providers import PROVIDERS, direction_call
from benchmarks.record import write_environment
from benchmarks.workloads import load

COPY_MB = (8, 32, 128, 512, 2048)
L2_MB = (10, 20, 40)
CPU_MB = (16, 32, 64)
ROW = "seresnet50/1"
SECONDS = 0.3


def median_ms(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        return timing.time_cuda({"": [call]}, seconds=SECONDS, with_costs=False)[""].median_ms
    threads = torch.get_num_threads()
    return timing.time_cpu({"": call}, threads=threads, seconds=0.05)[""].median_ms


def copy_speeds(device: torch.device, sizes_mb: Sequence[int]) -> list[dict[str, float]]:
    """GB/s of a copy, bytes read and bytes written counted; sizes are of the source."""
    speeds = []
    for size in sizes_mb:
        source = torch.randn(size * 250_000, device=device)
        target = torch.empty_like(source)
        ms = median_ms(lambda: target.copy_(source), device)  # noqa: B023
        speeds.append({"MB": size, "ms": ms, "GB/s": 2 * size / ms})
    return speeds


def memory_costs(sizes_mb: Sequence[int]) -> list[dict[str, object]]:
    """What a layer on the CPU cannot do without: reads and writes, in copies of the same tensor.

    `new` memory is what the allocator returns for each call, with its page faults. A layer that
    returns a new tensor from there takes at least about `copy to new`.
    """
    costs: list[dict[str, object]] = []
    for size in sizes_mb:
        source = torch.randn(size * 250_000)
        target = torch.empty_like(source)
        calls: dict[str, Callable[[], object]] = {
            "copy": lambda: target.copy_(source),  # noqa: B023
            "read": lambda: source.sum(),  # noqa: B023
            "write": lambda: target.fill_(1),  # noqa: B023
            "write to new": lambda: torch.empty_like(source).fill_(1),  # noqa: B023
            "copy to new": lambda: source.clone(),  # noqa: B023
        }
        timings = timing.time_cpu(calls, threads=torch.get_num_threads(), seconds=SECONDS)
        copy = timings["copy"].median_ms
        costs += [
            {"MB": size, "what": name, "ms": each.median_ms, "copies": each.median_ms / copy}
            for name, each in timings.items()
        ]
    return costs


def l2_speeds(sizes_mb: Sequence[int]) -> list[dict[str, float]]:
    """GB/s of reading a buffer again and again in one launch; small ones stay in L2."""
    from benchmarks.l2_kernel import reread

    speeds = []
    for size in sizes_mb:
        values = torch.randn(size * 250_000, device="cuda")
        few, many = (
            median_ms(lambda: reread(values, repeats), values.device)  # noqa: B023
            for repeats in (8, 40)
        )
        speeds.append({"MB": size, "ms": many - few, "GB/s": 32 * size / (many - few)})
    return speeds


def kernel_lists(names: Sequence[str]) -> list[dict[str, object]]:
    """What each provider puts on the device for one layer, in order, with microseconds."""
    (workload,) = [workload for workload in load() if workload.name == ROW]
    lists: list[dict[str, object]] = []
    for layout in LAYOUTS:
        torch.compiler.reset()
        device = torch.device("cuda")
        problem = Problem.make(workload, workload.batch, torch.bfloat16, layout, device)
        for name in names:
            for direction in ("forward", "backward"):
                call = direction_call(PROVIDERS[name], problem, direction)
                for _ in range(timing.WARM_UP):
                    call()
                for position, (kernel, us) in enumerate(timing.device_activities(call)):
                    lists.append(
                        {
                            "provider": name,
                            "layout": layout,
                            "direction": direction,
                            "position": position,
                            "us": us,
                            "kernel": kernel,
                        }
                    )
    return lists


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.truth")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--quick", action="store_true", help="one small copy")
    parser.add_argument("--results", type=Path, default=Path("out/results"))
    options = parser.parse_args(argv)
    try:
        device = choose_device(options.device)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    options.results.mkdir(parents=True, exist_ok=True)
    write_environment(options.results, device, {"seconds": SECONDS})
    sizes = (1,) if options.quick else COPY_MB[:2] if device.type == "cpu" else COPY_MB
    found: dict[str, list] = {"copy": copy_speeds(device, sizes)}  # type: ignore[type-arg]
    if device.type == "cuda":
        found["read that hits L2"] = l2_speeds(L2_MB)
        found["launches"] = kernel_lists(("plain", "compile", "fused"))
    else:
        found["memory"] = memory_costs(sizes if options.quick else CPU_MB)
    (options.results / "truth.json").write_text(json.dumps(found, indent=1) + "\n")
    sections = []
    for title, rows in found.items():
        lines = [{**row, "kernel": row["kernel"][:90]} if "kernel" in row else row for row in rows]
        sections.append(f"{title}\n\n{tabulate(lines, 'keys', 'github', floatfmt='.4g')}\n")
    text = "\n".join(sections)
    (options.results / "truth.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
