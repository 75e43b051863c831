"""Training on a folder of images: what is wrong with it is said, and nothing trained is lost."""

from __future__ import annotations

import csv
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("pytorch_metric_learning")

import train
from data import collate
from evaluation import verification
from folder import folder
from PIL import Image
from problem import Problem

pytestmark = pytest.mark.usefixtures("one_thread")
COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 40), "red": (220, 30, 30)}
PER_CLASS = 12


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes told apart by colour, every image of another size."""
    return paint(tmp_path / "photos")


def paint(root: Path, classes: tuple[str, ...] = tuple(COLOURS)) -> Path:
    random = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            shape = (*random.integers(16, 40, size=2), 3)
            pixels = np.clip(COLOURS[name] + random.normal(0, 20, shape), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:02}.png")
    return root


def load(path: Path, **options: object) -> object:
    defaults = {"faces": False, "bad": "stop", "seed": 0, "say": lambda text: None}
    return folder(path, 16, **{**defaults, **options})


def run(path: Path, output: Path, *extra: object) -> int:
    options = ("--model", "small", "--size", 16, "--batch-size", 12, "--device", "cpu")
    data = ("--data", f"folder:{path}", "--threads", 1, "--epochs", 2, "--workers", 0)
    return train.main([*map(str, (*options, *data, "--output", output, *extra))])


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("loss", ["ce", "arcface"])
def test_a_folder_trains(
    loss: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photos, tmp_path / "out", "--loss", loss, "--workers", 1, "--epochs", 8) == 0
    assert "images of different sizes" in capsys.readouterr().out
    last = rows(tmp_path / "out" / "epochs.csv")[-1]
    assert float(last["top1" if loss == "ce" else "nearest_centre"]) == 1
    gates = np.load(tmp_path / "out" / "gates.npz")
    assert gates["classes"].tolist() == sorted(COLOURS)
    assert gates["blocks.0.se"].shape == (3, 32)


def test_a_tenth_of_each_class_is_for_the_test(photos: Path) -> None:
    source = load(photos)
    train_files, test_files = ({path for path, _ in part.samples} for part in vars_of(source))
    assert len(test_files) == 3 and len(train_files) == 3 * (PER_CLASS - 1)
    assert not train_files & test_files
    assert {Path(path).parent.name for path in test_files} == set(COLOURS)


def vars_of(source: object) -> tuple[object, object]:
    return source.train, source.test


def test_train_and_val_folders_are_used(tmp_path: Path) -> None:
    paint(tmp_path / "train")
    paint(tmp_path / "val", ("green", "red"))
    source = load(tmp_path)
    assert len(source.train) == 3 * PER_CLASS and len(source.test) == 2 * PER_CLASS
    assert {label for _, label in source.test.samples} == {1, 2}  # as in train
    assert source.other_classes is None


def test_identities_that_were_not_trained_are_verified_by_pairs(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    paint(photos / "train", ("blue", "green"))
    paint(photos / "val", ("green", "red"))
    assert run(photos, tmp_path / "out", "--loss", "cosface", "--bad-files", "skip") == 0
    last = rows(tmp_path / "out" / "epochs.csv")[-1]
    assert last["nearest_centre"] == "nan"
    assert 0 <= float(last["verification"]) <= 1
    assert np.load(tmp_path / "out" / "gates.npz")["classes"].tolist() == ["green", "red"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "--data: there is no folder {root}"),
        (lambda root: root.mkdir(), "{root} has no folders: one per class or identity"),
        (lambda root: paint(root, ("red",)), "two classes are needed, 1 of 1 folders hold images"),
        (
            lambda root: (paint(root), (root / "empty").mkdir()),
            "{root}: 1 of 4 class folders hold no images: empty; remove them, or train without "
            "them: --bad-files skip",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(
    make: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "photos"
    make(root)
    assert run(root, tmp_path / "out") == 1
    assert message.format(root=root) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_empty_classes_are_skipped_on_request(photos: Path) -> None:
    (photos / "empty").mkdir()
    said: list[str] = []
    source = load(photos, bad="skip", say=said.append)
    assert source.classes == sorted(COLOURS)
    assert said[0] == f"skipped: {photos}: 1 of 4 class folders hold no images: empty"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_file_stops_the_training_and_loses_nothing(
    workers: int, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stops before the step that needs the file, and goes on from there without it."""
    first = rows_of_first_epoch(photos, tmp_path)
    broken = photos / "green" / "05.png"
    broken.write_bytes(broken.read_bytes()[:100])
    output = tmp_path / "out"
    assert run(photos, output, "--workers", workers) == 1
    message = capsys.readouterr().err
    assert f"{broken} cannot be read as an image (" in message
    assert "saved in" in message and "Traceback" not in message
    stopped = torch.load(output / "checkpoint.pt")["done"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run(photos, output, "--resume", "--bad-files", "skip", "--workers", workers) == 0
    log = rows(output / "losses.csv")
    assert [row["step"] for row in log] == ["1", "2", "3", "4"]
    assert [row["loss"] for row in log[:stopped]] == first[:stopped]


def rows_of_first_epoch(photos: Path, tmp_path: Path) -> list[str]:
    assert run(photos, tmp_path / "whole") == 0
    return [row["loss"] for row in rows(tmp_path / "whole" / "losses.csv")]


def test_a_skipped_file_is_named_once_and_replaced_by_the_next(photos: Path) -> None:
    broken = photos / "blue" / "00.png"
    broken.write_text("no image")
    images = load(photos, bad="skip").train
    place = next(place for place, (path, _) in enumerate(images.samples) if path == str(broken))
    with pytest.warns(UserWarning, match=r"skipped: .*blue/00\.png cannot be read"):
        replaced = images[0, place]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images[1, place][1] == replaced[1] == 0
    nothing = load(photos, bad="stop").train[0, place]
    assert isinstance(nothing, Problem) and collate([replaced, nothing]) is nothing


def test_augmentation_depends_on_seed_epoch_and_image_alone(photos: Path) -> None:
    images, again = load(photos).train, load(photos).train
    first = images[3, 5][0]
    torch.rand(100)
    assert torch.equal(again[3, 5][0], first)
    assert not torch.equal(images[4, 5][0], first)
    assert not torch.equal(load(photos, seed=1).train[3, 5][0], first)


def test_images_of_any_mode_are_read(photos: Path) -> None:
    for mode in ("L", "LA", "RGBA", "P", "I;16", "1"):
        Image.new(mode, (20, 20)).save(photos / "red" / "00.png")
        images = load(photos, faces=True).train
        place = next(p for p, (path, _) in enumerate(images.samples) if path.endswith("red/00.png"))
        assert images[0, place][0].shape == (3, 16, 16)
    Image.new("RGB", (1, 1)).save(buffer := io.BytesIO(), "JPEG")
    (photos / "red" / "00.png").write_bytes(buffer.getvalue())
    assert load(photos).train[0, place][0].shape == (3, 16, 16)


# ---- pairs


def test_verification_of_perfect_and_of_random_embeddings() -> None:
    labels = torch.arange(20).repeat(10)
    perfect = verification(torch.eye(20)[labels], labels)
    assert perfect is not None and perfect.accuracy == perfect.area == 1
    torch.manual_seed(0)
    chance = verification(torch.randn(200, 16), labels)
    assert chance is not None
    assert chance.accuracy == pytest.approx(0.5, abs=0.05)
    assert chance.area == pytest.approx(0.5, abs=0.05)
    assert chance.false_positives[0] == 0 and chance.true_positives[-1] == 1


def test_verification_needs_two_images_of_one_and_another_identity() -> None:
    assert verification(torch.randn(4, 8), torch.arange(4)) is None
    assert verification(torch.randn(4, 8), torch.zeros(4, dtype=torch.long)) is None
