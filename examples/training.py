"""From the options to a trained network: data, steps, checkpoints, evaluation, the picture."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoint
import data
import evaluation
import losses
import networks
import numpy as np
import torch
from folder import folder
from gates import class_gates
from problem import Problem, Stop
from ranks import Ranks
from torch import Tensor
from tqdm import tqdm
from trainer import Trainer

FACES = 112  # pixels of aligned faces
PHOTOGRAPHS = 224
ENLARGED_DIGITS = 32
RECORDED = 1000  # classes whose gates are recorded, the first of them


class Training:
    """One run of `train.py`."""

    def __init__(self, options: argparse.Namespace, device: torch.device, ranks: Ranks) -> None:
        self.options, self.device, self.ranks = options, device, ranks
        self.output: Path = options.output
        self.checkpoint = self.output / "checkpoint.pt"
        self.margin = options.loss != "ce"
        self.source = self._source()
        self.per_epoch = self._sampler(0, 0).per_epoch
        self.steps = options.epochs * self.per_epoch
        self.trainer = self._trainer()
        if options.resume:
            self._resume()
        elif self.checkpoint.exists():
            raise Problem(
                f"{self.checkpoint} exists: --resume continues that training, --output takes "
                f"another folder"
            )
        done = self.trainer.done
        columns = ("step", "epoch", "loss", "lr", "seconds")
        self.log = checkpoint.Log(self.output / "losses.csv", columns, keep=done, write=ranks.first)
        self.measures = evaluation.PAIRED if self.margin else evaluation.CLASSES
        self.epochs = checkpoint.Log(
            self.output / "epochs.csv", ("step", *self.measures), keep=done, write=ranks.first
        )
        self.pending: list[tuple[int, float, Tensor]] = []
        self.started = time.perf_counter()

    # ---- what the options name

    def _source(self) -> data.Source:
        options = self.options
        own = options.model in ("small", "seresnet18", "seresnet50")
        if options.data == "digits":
            size = options.size or (8 if own else ENLARGED_DIGITS)
            return data.digits(size, 1 if own else 3)
        size = options.size or (FACES if self.margin or options.model == "irse50" else PHOTOGRAPHS)
        source = folder(
            Path(options.data.removeprefix("folder:")),
            size,
            faces=self.margin,
            bad=options.bad_files,
            seed=options.seed,
            say=self.say,
        )
        if not self.margin and source.other_classes:
            raise Problem("--loss ce: val has classes that train has not")
        return source

    def _trainer(self) -> Trainer:
        options, source = self.options, self.source
        classes = len(source.classes)
        torch.manual_seed(options.seed)
        network = networks.build(
            options.model,
            se=options.se,
            outputs=options.embedding if self.margin else classes,
            channels=source.channels,
            size=source.size,
        )
        if options.norm == "group":
            networks.use_group_norm(network)
        elif options.norm == "sync":
            network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
        loss = losses.build(
            options.loss,
            classes=classes,
            embedding=options.embedding,
            scale=options.scale,
            margin=options.margin,
            sample_rate=options.sample_rate,
            seed=options.seed,
            ranks=self.ranks,
        )
        return Trainer(
            network, loss, options, steps=self.steps, device=self.device, ranks=self.ranks
        )

    def _resume(self) -> None:
        latest = self.options.resume == "latest"
        path = self.checkpoint if latest else Path(self.options.resume)
        if latest and not path.exists():
            self.say(f"--resume: there is no {path} yet, a new training starts")
            return
        state = checkpoint.load(path, self.options)
        try:
            self.trainer.load(state)
        except Problem as problem:
            raise Problem(f"--resume: {path} does not fit: {problem}") from None

    # ---- the course of it

    def run(self) -> None:
        """Trains to the end.

        Raises:
            Problem: it had to stop before; all that was trained is saved.
        """
        trainer, options = self.trainer, self.options
        stop = Stop()
        batches = self.train_batches()
        bar = tqdm(
            total=self.steps,
            initial=trainer.done,
            desc="training",
            unit="step",
            disable=None if self.ranks.first else True,
        )
        try:
            with bar:
                while True:
                    self._evaluate_if_due()
                    if trainer.done == self.steps:
                        break
                    batch = next(batches)
                    problem = batch if isinstance(batch, Problem) else None
                    if self.ranks.any(problem is not None or stop.requested):
                        raise self._stop(problem)
                    self.pending.append((trainer.done + 1, trainer.lr, trainer.step(*batch)))
                    bar.update()
                    if trainer.done % options.log_every == 0:
                        self._flush()
                        bar.set_postfix(loss=f"{self.log.last('loss'):.4f}", refresh=False)
                    if trainer.done % (options.save_every or self.per_epoch) == 0:
                        self._save()
            self._save()
        finally:
            stop.forget()
        self._look_inside()

    def _stop(self, problem: Problem | None) -> Problem:
        """Saves; what to raise. The first process says what the problem of any of them was."""
        self._save()
        lines = {str(each) for each in self.ranks.gather(problem) if each is not None}
        saved = f"stopped after step {self.trainer.done}, saved in {self.checkpoint}"
        return Problem("\n".join([*sorted(lines), f"{saved}; --resume continues"]))

    def train_batches(self) -> Iterator[Any]:
        """The rest of the training's batches, for this process; or Problems in their place."""
        return iter(self._loader(self.source.train, self._sampler(self.trainer.done, self.steps)))

    def _sampler(self, start: int, stop: int) -> data.Batches:
        length, batch, seed = len(self.source.train), self.options.batch_size, self.options.seed
        return data.Batches(length, batch, self.ranks, seed=seed, start=start, stop=stop)

    def _loader(self, dataset: Any, batches: Any) -> Any:
        workers = 0 if self.options.data == "digits" else self.options.workers
        return data.loader(dataset, batches, workers=workers, pin=self.device.type == "cuda")

    def _flush(self) -> None:
        """Writes the losses of the last steps, the mean over the processes."""
        if not self.pending:
            return
        values = torch.stack([loss for *_, loss in self.pending]).float()
        means = (self.ranks.sum(values) / self.ranks.world).tolist()
        seconds = f"{time.perf_counter() - self.started:.2f}"  # since this start, not the first
        rows = [
            (step, (step - 1) // self.per_epoch + 1, loss, lr, seconds)
            for (step, lr, _), loss in zip(self.pending, means, strict=True)
        ]
        self.pending.clear()
        self.log.add(rows)
        for step, _, loss, _, _ in rows:
            if not math.isfinite(loss):
                raise Problem(
                    f"the loss is {loss} at step {step}: try a lower --lr or a longer --warmup; "
                    f"the last checkpoint is from before"
                )

    def _save(self) -> None:
        self._flush()
        state = self.trainer.state()
        if self.ranks.first:
            checkpoint.save(self.checkpoint, state, self.options)

    # ---- evaluation

    def _test_batches(self, problems: list[Problem]) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of the test images, on the device; ends at the first problem."""
        part = data.part_of(len(self.source.test), self.options.batch_size, self.ranks)
        for batch in self._loader(self.source.test, part):
            if isinstance(batch, Problem):
                problems.append(batch)
                return
            yield self.trainer.to_device(*batch)

    def _outputs(self) -> tuple[Tensor, Tensor]:
        problems: list[Problem] = []
        outputs = evaluation.collect(self.trainer.infer, self._test_batches(problems), self.ranks)
        if self.ranks.any(bool(problems)):
            raise self._stop(problems[0] if problems else None)
        return outputs

    def _evaluate_if_due(self) -> None:
        done = self.trainer.done
        due = done == self.steps or done % (self.per_epoch * self.options.eval_every) == 0
        if not done or not due or str(done) in [row["step"] for row in self.epochs.rows]:
            return
        self._flush()
        outputs, labels = self._outputs()
        centres = losses.class_centres(self.trainer.loss, self.ranks) if self.margin else None
        values = [float("nan")] * len(self.measures)
        if self.ranks.first:
            known = None if self.source.other_classes else centres
            values = evaluation.measure(self.measures, outputs, labels, known)
            pairs = zip(self.measures, values, strict=True)
            text = ", ".join(f"{name} {value:.2%}" for name, value in pairs if value == value)
            self.say(f"epoch {done // self.per_epoch}: {text}")
        self.epochs.add([(done, *values)])

    def _look_inside(self) -> None:
        """The gates per layer and class; the picture."""
        classes = self.source.test_classes[:RECORDED]
        gates = class_gates(
            self.trainer.trained,
            self._test_batches([]),
            len(classes),
            forward=self.trainer.infer,
            total=self.ranks.sum,
        )
        outputs, labels = self._outputs()
        if not self.ranks.first:
            return
        np.savez(self.output / "gates.npz", classes=np.array(classes), **gates)
        from picture import draw_training

        pairs = evaluation.verification(outputs, labels) if self.margin else None
        draw_training(
            self.output / "picture.png",
            losses=self.log.column("loss"),
            gates=gates,
            classes=classes,
            embeddings=(outputs.numpy(), labels.numpy()),
            pairs=pairs,
        )
        self.say(f"losses, gates, picture and checkpoint: {self.output}")

    def say(self, text: str) -> None:
        if self.ranks.first:
            tqdm.write(text)
