"""From the options to a trained network: data, steps, checkpoints, evaluation, the picture."""

from __future__ import annotations

import argparse
import signal
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
from problem import Problem
from ranks import Ranks
from torch import Tensor
from tqdm import tqdm
from trainer import Trainer

FACES = 112  # pixels of aligned faces
PHOTOGRAPHS = 224
ENLARGED_DIGITS = 32


class Stop:
    """Ctrl-C or SIGTERM (torchrun's, a scheduler's) ends the training after the step it is in."""

    def __init__(self) -> None:
        self.requested = False
        self.before = {
            number: signal.signal(number, self._request)
            for number in (signal.SIGINT, signal.SIGTERM)
        }

    def _request(self, number: int, frame: Any) -> None:
        self.requested = True
        signal.signal(number, self.before[number])  # the second one is not waited for

    def forget(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Training:
    """One run of `train.py`."""

    def __init__(self, options: argparse.Namespace, device: torch.device, ranks: Ranks) -> None:
        self.options, self.device, self.ranks = options, device, ranks
        self.output: Path = options.output
        self.checkpoint = self.output / "checkpoint.pt"
        self.source = self._source()
        self.margin = options.loss != "ce"
        sampled = data.Batches(
            len(self.source.train), options.batch_size, ranks, seed=options.seed, start=0, stop=0
        )
        self.per_epoch = sampled.per_epoch
        self.steps = options.epochs * self.per_epoch
        self.trainer = self._trainer()
        if options.resume:
            self._resume()
        elif self.checkpoint.exists():
            raise Problem(
                f"{self.checkpoint} exists: --resume continues that training, --output takes "
                f"another folder"
            )
        kept = {"keep": self.trainer.done, "write": ranks.first}
        self.log = checkpoint.Log(
            self.output / "losses.csv", ("step", "epoch", "loss", "lr", "seconds"), **kept
        )
        self.epochs = checkpoint.Log(
            self.output / "epochs.csv", ("step", *self._measures()), **kept
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
        faces = options.loss != "ce"
        size = options.size or (FACES if faces or options.model == "irse50" else PHOTOGRAPHS)
        source = folder(
            Path(options.data.removeprefix("folder:")),
            size,
            faces=faces,
            bad=options.bad_files,
            seed=options.seed,
            say=self.say,
        )
        if not faces and not source.same_classes:
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
                        bar.set_postfix(loss=self.log.rows[-1]["loss"][:6], refresh=False)
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
        options = self.options
        sampler = data.Batches(
            len(self.source.train),
            options.batch_size,
            self.ranks,
            seed=options.seed,
            start=self.trainer.done,
            stop=self.steps,
        )
        return iter(self._loader(self.source.train, sampler))

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
        if not np.isfinite(means).all():
            raise Problem(
                f"the loss is {means[-1]} at step {rows[-1][0]}: try a lower --lr or a longer "
                f"--warmup; the last checkpoint is from before"
            )

    def _save(self) -> None:
        self._flush()
        state = self.trainer.state()
        if self.ranks.first:
            checkpoint.save(self.checkpoint, state, self.options)

    # ---- evaluation

    def _measures(self) -> tuple[str, ...]:
        if not self.margin:
            return ("top1",)
        return (
            ("nearest_centre", "verification", "area")
            if self.source.same_classes
            else (
                "verification",
                "area",
            )
        )

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
        measured = self._measure(*self._outputs())
        if self.ranks.first:
            values = [measured[name] for name in self._measures()]
            self.epochs.add([(done, *values)])
            text = ", ".join(f"{n} {v:.2%}" for n, v in zip(self._measures(), values, strict=True))
            self.say(f"epoch {done // self.per_epoch}: {text}")
        else:
            self.epochs.add([(done, *[0.0] * len(self._measures()))])

    def _measure(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Of all test images, on the first process."""
        centres = (
            losses.class_centres(self.trainer.loss, self.ranks) if self.margin else torch.empty(0)
        )
        if not self.ranks.first:
            return {}
        if not self.margin:
            return {"top1": _part(outputs.argmax(dim=1) == labels)}
        pairs = evaluation.verification(outputs, labels, seed=self.options.seed)
        measured = {"verification": np.nan, "area": np.nan}
        if pairs is not None:
            measured = {"verification": pairs.accuracy, "area": pairs.area}
        if self.source.same_classes:
            right = losses.nearest_centre(outputs, centres) == labels
            measured["nearest_centre"] = _part(right)
        return measured

    def _look_inside(self) -> None:
        """The gates per layer and class; the picture."""
        gates = {}
        if self.source.same_classes:
            gates = class_gates(
                self.trainer.trained,
                self._test_batches([]),
                len(self.source.classes),
                forward=self.trainer.infer,
                total=self.ranks.sum,
            )
        outputs, labels = self._outputs()
        if not self.ranks.first:
            return
        np.savez(self.output / "gates.npz", classes=np.array(self.source.classes), **gates)
        from picture import draw_training

        pairs = evaluation.verification(outputs, labels) if self.margin else None
        draw_training(
            self.output / "picture.png",
            losses=self.log.column("loss"),
            gates=gates,
            classes=self.source.classes,
            embeddings=(outputs.numpy(), labels.numpy()) if self.margin else None,
            roc=pairs and (pairs.false_positives, pairs.true_positives, pairs.area),
        )
        self.say(f"losses, gates, picture and checkpoint: {self.output}")

    def say(self, text: str) -> None:
        if self.ranks.first:
            tqdm.write(text)


def _part(right: Tensor) -> float:
    return right.float().mean().item()
