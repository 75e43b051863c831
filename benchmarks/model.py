"""Times whole training steps of real networks with plain SE, with fused SE, and without SE.

    python -m benchmarks.model --network seresnet50

A step is forward, loss, backward and SGD with momentum; bfloat16 autocast on CUDA, float32 on a
CPU. The three variants start from the same weights and take turns. What SE costs is the step with
it less the step without it. Before anything is timed, fused and plain have to give the same
outputs. Leaves `model.csv`, every repetition and the table in one folder, and goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from benchmarks import networks, timing
from benchmarks.model_table import table
from benchmarks.networks import NETWORKS, SE_KINDS, Network
from benchmarks.options import choose_device
from benchmarks.problems import LAYOUTS
from benchmarks.record import ModelRow, Record, malloc, timed, write_environment

MODES = ("eager", "compile")
QUICK_BATCH, QUICK_SIZE = 2, 32
WRONG, UNSERVED, INCOMPLETE = 1, 2, 3  # exit codes


def training_step(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype
) -> Callable[[], object]:
    """One step as a call."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    narrow = dtype != torch.float32

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, dtype=dtype, enabled=narrow):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return step


def measure(
    network: Network, layout: str, mode: str, options: argparse.Namespace, record: Record
) -> bool:
    """Adds what the record lacks of a network in one layout and mode; False if it is wrong."""
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    name = str(dtype).removeprefix("torch.")
    batch = options.batch or (QUICK_BATCH if options.quick else network.batch)
    size = QUICK_SIZE if options.quick else network.size
    rows = [ModelRow(network.name, batch, name, layout, mode, se) for se in SE_KINDS]
    if all(record.has(row) for row in rows):
        return True
    torch.compiler.reset()
    images = torch.randn(batch, 3, size, size).to(device, memory_format=LAYOUTS[layout])
    labels = torch.randint(512, (batch,), device=device)
    models = {
        se: networks.variant(network, se, size).to(device, memory_format=LAYOUTS[layout]).train()
        for se in SE_KINDS
    }
    few = images[: networks.CHECK_BATCH]
    apart = networks.disagreement(models["plain"], models["fused"], few)
    if not apart <= networks.AGREEMENT:
        tqdm.write(f"WRONG: {network.name} {layout}: fused and plain are {apart:.2g} apart")
        return False
    steps = {}
    for se, model in models.items():
        run = torch.compile(model, dynamic=False) if mode == "compile" else model
        steps[se] = training_step(run, images, labels, dtype)
    times = _time(steps, device, options)
    for se, model in models.items():
        model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            times[se] = replace(times[se], peak_bytes=timing.peak_bytes(steps[se]))
            model.zero_grad(set_to_none=True)
    record.add([(replace(row, **timed(times[row.se])), times[row.se]) for row in rows])
    return True


def _time(
    steps: dict[str, Callable[[], object]], device: torch.device, options: argparse.Namespace
) -> dict[str, timing.Timing]:
    seconds = options.seconds or (0.01 if options.quick else 3.0)
    if device.type == "cuda":
        rotations = {se: [step] for se, step in steps.items()}
        return timing.time_cuda(rotations, seconds=seconds, with_costs=False)
    rounds = 1 if options.quick else timing.ROUNDS
    return timing.time_cpu(steps, threads=options.threads, seconds=seconds, rounds=rounds)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.model", description="Times training steps of whole networks."
    )
    add = parser.add_argument
    add("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--layout", nargs="+", choices=LAYOUTS, default=["nhwc", "nchw"], help="of the images")
    add("--mode", nargs="+", choices=MODES, help="default: both on CUDA, eager on a CPU")
    add("--batch", type=int, help="default: 128")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--threads", type=int, default=torch.get_num_threads(), help="on the CPU")
    add("--seconds", type=float, help="time for each variant; default 3")
    add("--quick", action="store_true", help="two small images, a few steps")
    add("--budget", type=float, help="start nothing new after so many seconds")
    add("--results", type=Path, default=Path("out/results"), help="the folder to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 if a result was wrong, 2 if the options cannot be served, 3 if cut short."""
    options = _options(argv)
    started = time.monotonic()
    try:
        device = choose_device(options.device)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNSERVED
    on_cuda = device.type == "cuda"
    options.device = device.type
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True  # as one trains: sizes never change
    method: dict[str, object] = {"seconds": options.seconds or 3.0, "quick": options.quick}
    method |= {} if on_cuda else {"threads": options.threads, "malloc": malloc()}
    record = Record(options.results, "model", ModelRow, method)
    write_environment(options.results, device, method)
    cases = [
        (NETWORKS[name], layout, mode)
        for mode in options.mode or (MODES if on_cuda else MODES[:1])
        for layout in options.layout
        for name in options.network
    ]
    right, left = True, 0
    for network, layout, mode in tqdm(cases, unit="case", disable=None):
        if options.budget is not None and time.monotonic() - started > options.budget:
            left += 1
            continue
        try:
            right &= measure(network, layout, mode, options, record)
        except RuntimeError:  # the other networks are still worth having
            tqdm.write(f"FAILED: {network.name} {layout} {mode}\n{traceback.format_exc()}")
            right = False
    rows = [row for row in record.rows.values() if isinstance(row, ModelRow)]
    (options.results / "model.md").write_text(table(rows, "github") + "\n")
    print(f"\n{table(rows)}\n\nwrote {record.csv}")
    if left:
        print(f"{left} of {len(cases)} cases are left: run it again to go on")
    return WRONG if not right else INCOMPLETE if left else 0


if __name__ == "__main__":
    sys.exit(main())
