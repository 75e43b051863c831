"""The demo: a small SE-ResNet on handwritten digits, with the fused SE layer and the plain one.

The two start from the same weights and see the same batches, so they are the same training up to
float32 rounding. A third run shows how much that is: the plain layer once more, its first weights
moved by one unit in the last place. Prints one table and writes one picture: the loss curves, and
the gates that SE learnt.

The digits are the 1797 real 8x8 scans that scikit-learn ships; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from data import Digits
from gates import class_gates
from picture import draw
from problem import Problem
from se_resnet import PlainSEResidual, SEResNet
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from seblock_cuda import SEResidual

FIRST_STEPS = 20
MIN_ACCURACY = 0.97
# How far apart two losses may be: ten times what float32 rounding does to plain SE over many
# seeds. Rounding starts at 2e-7; where it moves a ReLU's input across 0, the losses part by up to
# 2e-4 within 20 steps and by some 5e-3 later. So this is a check of the whole, not a proof of the
# gradients: for that there are the tests.
MAX_DIFFERENCE_FIRST = 1e-3
MAX_DIFFERENCE = 5e-2
QUICK_STEPS = 6


@dataclass
class Run:
    """One network in training, and what is recorded of it: loss and milliseconds of every step."""

    model: SEResNet
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    losses: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        se_layer: Callable[[int, float], nn.Module],
        *,
        seed: int,
        lr: float,
        steps: int,
        device: torch.device,
    ) -> Run:
        torch.manual_seed(seed)
        model = SEResNet(se_layer).to(device)
        # The gates start near 1/2, whatever the image. A larger rate and no decay let
        # them leave it in the few hundred steps that this takes.
        se_parameters = [
            weight for layer in model.se_layers().values() for weight in layer.parameters()
        ]
        others = set(model.parameters()) - set(se_parameters)
        groups: list[dict[str, Any]] = [
            {"params": [weight for weight in model.parameters() if weight in others]},
            {"params": se_parameters, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=[lr, 8 * lr], total_steps=steps, cycle_momentum=False
        )
        return cls(model, optimizer, schedule)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One step of SGD; reading the loss waits for the device."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        self.step_ms.append(1e3 * (time.perf_counter() - start))
        self.schedule.step()


def move_by_one_unit(model: nn.Module) -> None:
    """Moves the first parameter by one unit in its last place, the least that float32 can see."""
    weight = next(model.parameters())
    with torch.no_grad():
        weight.copy_(torch.nextafter(weight, torch.full_like(weight, torch.inf)))


def train(runs: Sequence[Run], data: Digits, *, steps: int, batch_size: int, seed: int) -> None:
    """Trains all runs on the same batches, a step of each in turn, so that times compare."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    with tqdm(range(steps), desc="training", unit="step", disable=None) as progress:
        for _ in progress:
            if (
                len(order) < batch_size
            ):  # a new epoch; the last, smaller batch of the old one is dropped
                order = torch.randperm(len(data.train_labels), generator=generator)
            batch, order = order[:batch_size].to(data.train_labels.device), order[batch_size:]
            images, labels = data.train_images[batch], data.train_labels[batch]
            for run in runs:
                run.step(images, labels)
            progress.set_postfix(loss=f"{runs[0].losses[-1]:.4f}", refresh=False)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    return (model(images).argmax(dim=1) == labels).float().mean().item()


def largest_difference(one: Run, other: Run, steps: int | None = None) -> float:
    return float(np.abs(np.subtract(one.losses[:steps], other.losses[:steps])).max())


def table(runs: Mapping[str, Run], data: Digits, device: torch.device) -> str:
    """The runs side by side; "plain" is what the others are compared with."""
    plain = runs["plain"]
    plain_ms = np.median(plain.step_ms)
    where = f"CPU, threads: {torch.get_num_threads()}"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)

    def difference(run: Run, steps: int | None) -> str:
        return "" if run is plain else f"{largest_difference(run, plain, steps):.1e}"

    columns = [
        (
            f"{accuracy(run.model, data.test_images, data.test_labels):.2%}",
            f"{np.median(run.step_ms):.2f} ms",
            f"{plain_ms / np.median(run.step_ms):.2f}x",
            difference(run, FIRST_STEPS),
            difference(run, None),
            where if name == "fused" else "",
        )
        for name, run in runs.items()
    ]
    labels = (
        "test accuracy",
        "time of a training step, median",
        "speed, plain = 1",
        f"loss: largest difference to plain, first {FIRST_STEPS} steps",
        f"loss: largest difference to plain, all {len(plain.losses)} steps",
        "ran on",
    )
    return tabulate(zip(labels, *columns, strict=True), ("SE layer", *runs), disable_numparse=True)


def verdict(fused: Run, plain: Run, data: Digits) -> int:
    """Prints whether the training went as it should; 0 if so, else 1."""
    failures = []
    for name, run in (("fused", fused), ("plain", plain)):
        reached = accuracy(run.model, data.test_images, data.test_labels)
        if reached < MIN_ACCURACY:
            failures.append(f"{name}: accuracy {reached:.2%} is below {MIN_ACCURACY:.0%}")
    for steps, bound in ((FIRST_STEPS, MAX_DIFFERENCE_FIRST), (None, MAX_DIFFERENCE)):
        difference = largest_difference(fused, plain, steps)
        if not difference <= bound:
            span = f"the first {steps} steps" if steps else "all steps"
            failures.append(
                f"the losses differ by {difference:.1e} over {span}, {bound:.0e} allowed"
            )
    print(
        f"FAILED: {'; '.join(failures)}"
        if failures
        else "ok: the same training, to within the drift of float32 rounding"
    )
    return 1 if failures else 0


def run(options: argparse.Namespace, device: torch.device) -> int:
    """Trains, prints the table, writes the picture; the exit status."""
    torch.set_num_threads(options.threads)
    # Rounding is to be that of float32, and the same in every run.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True

    data = Digits.load().to(device)
    steps = options.epochs * (len(data.train_labels) // max(1, options.batch_size))
    if steps < 1:
        raise Problem(
            f"--epochs {options.epochs} --batch-size {options.batch_size} leave no step to train: "
            f"there are {len(data.train_labels)} images"
        )
    steps = QUICK_STEPS if options.quick else steps
    layers = {"fused": SEResidual, "plain": PlainSEResidual, "control": PlainSEResidual}
    runs = {
        name: Run.start(layer, seed=options.seed, lr=options.lr, steps=steps, device=device)
        for name, layer in layers.items()
    }
    move_by_one_unit(runs["control"].model)
    in_turn = list(runs.values())
    train(in_turn, data, steps=steps, batch_size=options.batch_size, seed=options.seed)

    print(table(runs, data, device))
    print(
        "control: the plain layer, the network's first weights moved by one unit in the last place"
    )
    fused = runs["fused"].model
    gates = class_gates(fused, [(data.test_images, data.test_labels)], classes=10)
    titled = dict(zip(fused.se_layers(), gates.values(), strict=True))
    draw(options.output, {name: run.losses for name, run in runs.items()}, titled)
    print(f"picture: {options.output}")
    return 0 if options.quick else verdict(runs["fused"], runs["plain"], data)
