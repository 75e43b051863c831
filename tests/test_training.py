"""Training: every loss learns, kills and more processes change nothing, errors are clear."""

from __future__ import annotations

import csv
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("pytorch_metric_learning")

import networks
import train
from ranks import Ranks
from training import Training

import seblock_cuda
from tests.processes import run_on_ranks

SCRIPT = Path(train.__file__)
pytestmark = pytest.mark.usefixtures("one_thread")
ON_CPU = ["--device", "cpu", "--threads", "1"]
LOSSES = ("ce", "arcface", "cosface", "partialfc")
DRIFT = 1e-3  # of the first losses, from rounding alone: see demo.py


def command(*arguments: object) -> list[str]:
    return [*map(str, arguments), *ON_CPU]


def environment() -> dict[str, str]:
    package = str(Path(seblock_cuda.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1"}


def start(*arguments: object, ranks: Ranks | None = None) -> Training:
    options = train.parse_arguments(command(*arguments))
    return Training(options, torch.device("cpu"), ranks or Ranks())


def column(folder: Path, name: str, file: str = "losses.csv") -> list[float]:
    with (folder / file).open(newline="") as lines:
        return [float(row[name]) for row in csv.DictReader(lines)]


# ---- each loss


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_trains(loss: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    extra = ["--sample-rate", 0.5] if loss == "partialfc" else []
    arguments = ("--loss", loss, "--epochs", 4, "--scale", 16, "--output", folder, *extra)
    assert train.main(command(*arguments)) == 0
    assert len(column(folder, "loss")) == 4 * 21
    measure = "top1" if loss == "ce" else "nearest_centre"
    assert column(folder, measure, "epochs.csv")[-1] >= 0.95
    if loss != "ce":
        assert column(folder, "verification", "epochs.csv")[-1] >= 0.95
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "gates.npz").stat().st_size > 10 * (32 + 64 + 128) * 4
    assert "epoch 4: " in capsys.readouterr().out


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("dtype", "steps", "drift"), [(torch.float32, 3, 1e-3), (torch.float64, 20, 1e-9)]
)
def test_fused_and_plain_are_the_same_training(
    loss: str, dtype: torch.dtype, steps: int, drift: float, tmp_path: Path
) -> None:
    """In float32 only at first: once rounding moves a ReLU's input across 0, the margin losses part
    by percents, plain SE from plain SE with one weight moved by one unit, too. At which step, the
    processor's rounding says; the fourth has been seen."""
    curves = []
    for se in ("fused", "plain"):
        training = start("--loss", loss, "--se", se, "--batch-size", 32, "--output", tmp_path / se)
        training.trainer.network.to(dtype)
        training.trainer.loss.to(dtype)
        batches = itertools.islice(training.train_batches(), steps)
        losses = [training.trainer.step(images.to(dtype), labels) for images, labels in batches]
        curves.append([loss.item() for loss in losses])
    assert curves[0] == pytest.approx(curves[1], rel=drift)


@pytest.mark.parametrize(
    "extra",
    [
        ("--amp", "bf16", "--ema", 0.9, "--channels-last"),
        ("--model", "irse50", "--loss", "arcface", "--size", 16, "--batch-size", 16),
        ("--model", "seresnet18", "--norm", "group", "--batch-size", 16),
        ("--model", "seresnet50", "--batch-size", 16),
        ("--model", "timm:seresnet18", "--size", 32, "--batch-size", 16),
    ],
    ids=lambda extra: " ".join(map(str, extra)),
)
def test_options_and_networks_step(extra: tuple[object, ...], tmp_path: Path) -> None:
    """Two steps; the SE layers' weights move."""
    training = start(*extra, "--output", tmp_path)
    layers = [p for n, p in training.trainer.network.named_parameters() if ".se." in n]
    before = [weight.detach().clone() for weight in layers]
    for batch in itertools.islice(training.train_batches(), 2):
        assert training.trainer.step(*batch).isfinite()
    assert layers and not all(map(torch.equal, before, layers))
    outputs = training.trainer.infer(training.trainer.to_device(*batch)[0])
    assert outputs.isfinite().all()


def test_timm_networks_get_fused_layers_with_the_same_results() -> None:
    outputs = []
    for se in ("fused", "plain"):
        torch.manual_seed(0)
        model = networks.build("timm:seresnet18", se=se, outputs=10, channels=3, size=32).eval()
        torch.manual_seed(0)
        outputs.append(model(torch.randn(2, 3, 32, 32)))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


# ---- kills


def rows(folder: Path) -> int:
    try:
        return len(column(folder, "loss"))
    except (OSError, KeyError, TypeError, ValueError):
        return 0


@pytest.mark.parametrize(("how", "loss"), [("SIGKILL", "ce"), ("SIGTERM", "partialfc")])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    how: str, loss: str, tmp_path: Path
) -> None:
    """Killed in the middle of an epoch, the checkpoint of SIGKILL some steps old."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    extra = ["--sample-rate", 0.5, "--ema", 0.99] if loss == "partialfc" else []
    arguments = ("--loss", loss, "--epochs", 3, "--save-every", 8, "--log-every", 1, *extra)
    assert train.main(command(*arguments, "--output", whole)) == 0

    line = [sys.executable, SCRIPT, *command(*arguments, "--output", killed)]
    process = subprocess.Popen(line, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while rows(killed) < 25 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(getattr(signal, how))
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == (-signal.SIGKILL if how == "SIGKILL" else 1), errors
    stopped = rows(killed)
    assert 25 <= stopped < 3 * 21
    if how == "SIGTERM":
        assert f"stopped after step {stopped}, saved in" in errors
        assert "--resume continues" in errors

    assert train.main(command(*arguments, "--output", killed, "--resume")) == 0
    for name in ("step", "epoch", "loss", "lr"):
        assert column(killed, name) == column(whole, name)
    assert (killed / "epochs.csv").read_text() == (whole / "epochs.csv").read_text()


def test_a_training_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoint.pt").touch()
    assert train.main(command("--model", "small", "--output", tmp_path)) == 1
    assert "checkpoint.pt exists: --resume continues that training" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.pt"
    start("--model", "small", "--output", tmp_path)._save()

    def refused(*extra: object) -> str:
        assert train.main(command("--model", "small", "--output", tmp_path, *extra)) == 1
        return capsys.readouterr().err

    assert refused("--resume", tmp_path / "none.pt").startswith("--resume: there is no checkpoint")
    assert "was trained with --epochs 15, now 3; --seed 0, now 1\n" in refused(
        "--resume", "--epochs", 3, "--seed", 1
    )
    state = torch.load(path)
    del state["network"]["stem.0.weight"]
    torch.save(state, path)
    message = refused("--resume")
    assert "checkpoint.pt does not fit: " in message and "stem.0.weight" in message
    path.write_bytes(path.read_bytes()[:5000])
    assert "is no checkpoint of this program" in refused("--resume", path)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--model", "small", "--lr", 1e30, "--warmup", 0, "--log-every", 2)
    assert train.main(command(*arguments, "--output", tmp_path)) == 1
    assert "the loss is nan at step" in capsys.readouterr().err
    assert not (tmp_path / "checkpoint.pt").exists()


# ---- several processes


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [*launch, str(SCRIPT), *command(*arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_two_processes_are_the_same_training_as_one(tmp_path: Path) -> None:
    """GroupNorm: BatchNorm would normalise over each process's own half of the batch."""
    arguments = ("--loss", "ce", "--norm", "group", "--epochs", 2)
    done = torchrun(*arguments, "--output", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert train.main(command(*arguments, "--output", tmp_path / "one")) == 0
    one, two = (column(tmp_path / name, "loss") for name in ("one", "two"))
    assert len(one) == 42 and one[-1] < 0.5 * one[0]
    assert two[:20] == pytest.approx(one[:20], rel=DRIFT)
    assert two == pytest.approx(one, rel=5e-2)
    measures = [(tmp_path / name / "epochs.csv").read_text() for name in ("one", "two")]
    assert measures[0].splitlines()[0] == measures[1].splitlines()[0]


MARGIN = ("--norm", "group", "--scale", 16, "--epochs", 1)


def steps(training: Training, count: int) -> list[float]:
    """The losses of the next steps, the mean over the processes."""
    batches = itertools.islice(training.train_batches(), count)
    values = torch.stack([training.trainer.step(*batch) for batch in batches])
    return (training.ranks.sum(values) / training.ranks.world).tolist()


def _ten_steps(rank: int, world: int, folder: str) -> None:
    for loss in ("arcface", "partialfc"):
        arguments = (*MARGIN, "--loss", loss, "--output", Path(folder) / loss)
        training = start(*arguments, ranks=Ranks(rank, world, rank))
        values = steps(training, 5)
        training._save()
        values += steps(training, 5)  # saving has changed nothing
        training._save()
        torch.save(values, Path(folder) / loss / f"{rank}.pt")


def test_margin_losses_go_on_with_another_number_of_processes(tmp_path: Path) -> None:
    """Ten steps of two processes, two of one: the curve of one alone."""
    run_on_ranks(_ten_steps, 2, tmp_path)
    for loss in ("arcface", "partialfc"):
        alone = steps(start(*MARGIN, "--loss", loss, "--output", tmp_path / "alone"), 12)
        folder = tmp_path / loss
        first, others = (torch.load(folder / f"{rank}.pt") for rank in range(2))
        assert first == others
        resumed = start(*MARGIN, "--loss", loss, "--output", folder, "--resume")
        assert [*first, *steps(resumed, 2)] == pytest.approx(alone, rel=DRIFT)
