"""The examples to start from train on tiny images, with every SE layer converted."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

START = Path(__file__).parent.parent / "examples/start"
OPTIONS = "--size 32 --batch-size 4 --epochs 2"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("photos")
    for kind in ("dark", "light"):
        (folder / kind).mkdir()
        for number in range(4):
            shade = (30 if kind == "dark" else 200) + number
            image.new("RGB", (40, 36), (shade, shade, shade)).save(folder / kind / f"{number}.png")
    return folder


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, START / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "library", "model"),
    [
        ("timm_loop", "timm", "mobilenetv3_small_050"),
        ("torchvision_references", "torchvision", "mobilenet_v3_small"),
        ("accelerate_loop", "accelerate", "mobilenetv3_small_050"),
    ],
)
def test_loops(
    name: str, library: str, model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(library)
    losses = load(name).main([str(photos), "--model", model, *OPTIONS.split()])
    assert len(losses) >= 4 and all(math.isfinite(loss) for loss in losses)
    said = capsys.readouterr().out
    assert "9 converted" in said and " left" not in said


def test_lightning(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)  # where Lightning writes its logs
    module = load("lightning_module")
    options = [str(photos), "--model", "mobilenetv3_small_050", *OPTIONS.split()]
    classifier = module.main(options)
    assert "9 converted" in capsys.readouterr().out
    assert classifier.global_step == 4
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    again = module.Classifier.load_from_checkpoint(checkpoint)
    for old, new in zip(classifier.parameters(), again.parameters(), strict=True):
        assert torch.equal(old.detach().cpu(), new.detach().cpu())
