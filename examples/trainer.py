"""Steps of a training, and all that has to be kept to continue it."""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from data import mixed
from gates import se_layers
from partial_fc import PartialFC
from problem import Problem
from ranks import Ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """Steps, and the state between two of them.

    Args:
        network: images to outputs; trained in place, on `device`.
        loss: outputs and labels to the mean loss; PartialFC's centres stay this process's own.
        options: those of the command line.
        steps: of the whole training: the schedule ends there.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        options: argparse.Namespace,
        *,
        steps: int,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.device, self.ranks, self.seed = device, ranks, options.seed
        self.layout = torch.channels_last if options.channels_last else torch.contiguous_format
        self.amp = AMP[options.amp]
        self.network = network.to(device, memory_format=self.layout)
        self.loss = loss.to(device)
        self.sharded = isinstance(loss, PartialFC) and ranks.world > 1
        if self.sharded and options.amp == "fp16":
            raise Problem("--loss partialfc on several processes takes --amp bf16, not fp16")
        self.average: AveragedModel | None = None
        if options.ema:
            self.ema = options.ema
            self.average = AveragedModel(network, multi_avg_fn=self._move, use_buffers=True)
        groups = _groups(network, loss, options)
        self.optimizer = torch.optim.SGD(groups, lr=options.lr, momentum=0.9, nesterov=True)
        factor = _warmup_and_cosine(options.warmup, steps)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.amp == "fp16")
        if options.compile:
            network.compile()
        self.parallel_network, self.parallel_loss = network, loss
        if ranks.world > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.parallel_network = DistributedDataParallel(network, device_ids=ids)
            if not self.sharded and list(loss.parameters()):
                self.parallel_loss = DistributedDataParallel(loss, device_ids=ids)
        self.done = 0  # steps

    @property
    def trained(self) -> nn.Module:
        """The network to evaluate: the moving average where there is one."""
        return self.average.module if self.average is not None else self.network

    @property
    def lr(self) -> float:
        return float(self.schedule.get_last_lr()[0])

    def to_device(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(self.device, memory_format=self.layout, non_blocking=True)
        return images, labels.to(self.device, non_blocking=True)

    @torch.no_grad()
    def infer(self, images: Tensor) -> Tensor:
        """The outputs of the network to evaluate."""
        self.trained.eval()
        with self._autocast():
            return self.trained(images)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.amp, enabled=self.amp is not None)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step; its loss on this process, not waited for."""
        # What is drawn depends on the step alone: a training that is continued draws the same.
        torch.manual_seed(mixed(self.seed, self.done, self.ranks.rank))
        self.network.train()
        images, labels = self.to_device(images, labels)
        with self._autocast():
            outputs = self.parallel_network(images)
        outputs = outputs if self.amp is None else outputs.float()
        loss = self.parallel_loss(outputs, labels)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.done += 1
        return loss.detach()

    def _move(self, averages: Any, currents: Any, count: Tensor) -> None:
        """The moving average's step, larger at first: the untrained weights are soon forgotten."""
        decay = min(self.ema, (1 + self.done) / (10 + self.done))
        get_ema_multi_avg_fn(decay)(averages, currents, count)

    # ---- what a checkpoint holds

    def state(self) -> dict[str, Any]:
        """All of it, for the first process; with sharded centres every process has to call this."""
        loss, optimizer = self.loss.state_dict(), self.optimizer.state_dict()
        if self.sharded:
            loss = {name: self._whole(shard) for name, shard in loss.items()}
            shards = optimizer["state"].get(self._centres, {})  # the live ones: not to be changed
            wholes = {name: self._whole(shard) for name, shard in shards.items()}
            optimizer["state"] = {**optimizer["state"], self._centres: wholes}
        return {
            "done": self.done,
            "network": self.network.state_dict(),
            "loss": loss,
            "optimizer": optimizer,
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """What `state` gave, on any number of processes.

        Raises:
            Problem: it is of another network or loss.
        """
        loss, optimizer = state["loss"], state["optimizer"]
        if isinstance(self.loss, PartialFC):
            own = slice(self.loss.first, self.loss.last)
            loss = {name: whole[own] for name, whole in loss.items()}
            momentum = optimizer["state"].get(self._centres, {})
            optimizer["state"][self._centres] = {
                name: whole[own] if isinstance(whole, Tensor) else whole
                for name, whole in momentum.items()
            }
        try:
            self.network.load_state_dict(state["network"])
            self.loss.load_state_dict(loss)
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(optimizer)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            lines = str(error).splitlines()
            raise Problem("\n".join(lines[:4] + ["..."] * (len(lines) > 4))) from None
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.done = state["done"]

    @property
    def _centres(self) -> int:
        """The number of PartialFC's centres among the optimiser's parameters: the last."""
        return sum(len(group["params"]) for group in self.optimizer.param_groups) - 1

    def _whole(self, shard: Any) -> Any:
        """The shards of all processes on the CPU of the first."""
        if not isinstance(shard, Tensor):
            return shard
        return torch.cat([shard[:0].cpu(), *self.ranks.gather(shard.cpu())])


def _groups(
    network: nn.Module, loss: nn.Module, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Weights, with decay; biases and norms without; SE with its own rate; the loss's own, last.

    The gates start near 1/2, whatever the image. A larger rate and no decay let them leave it
    in a training of a few hundred steps.
    """
    se = {weight for layer in se_layers(network).values() for weight in layer.parameters()}
    others = [weight for weight in network.parameters() if weight not in se]
    ordered = [weight for weight in network.parameters() if weight in se]
    decay, rate = options.weight_decay, options.lr * options.se_lr
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in others if weight.dim() > 1], "weight_decay": decay},
        {"params": [weight for weight in others if weight.dim() <= 1], "weight_decay": 0.0},
        {"params": ordered, "weight_decay": 0.0, "lr": rate},
        {"params": list(loss.parameters()), "weight_decay": decay},
    ]
    return [group for group in groups if group["params"]]


def _warmup_and_cosine(warmup: int, steps: int) -> Any:
    """The learning rate's factor: up in a line over `warmup` steps, then a cosine down to 0."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))

    return factor
