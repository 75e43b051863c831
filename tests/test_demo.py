"""The demo: it runs, says what it has to say, and compares like with like."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import seblock_cuda
from seblock_cuda import SEBlock
from seblock_cuda.reference import PlainSEBlock

EXAMPLES = Path(__file__).parents[1] / "examples"


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quick_demo_writes_table_and_picture(tmp_path: Path) -> None:
    for library in ("sklearn", "matplotlib", "tqdm", "tabulate"):
        pytest.importorskip(library)
    picture = tmp_path / "made" / "demo.png"
    command = [sys.executable, EXAMPLES / "train.py", "--quick", "--output", picture]
    command += ["--device", "cpu"]
    package = str(Path(seblock_cuda.__file__).parents[1])
    run = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": package},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    for text in ("test accuracy", "time of a training step", "first 20 steps", "all 6 steps"):
        assert text in run.stdout
    assert "fused" in run.stdout and "plain" in run.stdout and "CPU, threads: 1" in run.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.rglob("*.*")] == ["demo.png"]


def test_networks_start_equal_with_either_layer() -> None:
    network = load_example("se_resnet").SEResNet
    states = []
    for layer in (SEBlock, PlainSEBlock):
        torch.manual_seed(3)
        states.append(network(layer).state_dict())
    fused, plain = states
    assert list(fused) == list(plain)
    assert all(torch.equal(fused[name], plain[name]) for name in fused)


def test_every_residual_block_has_se_before_the_shortcut() -> None:
    """With gates of 0 the branch vanishes and the shortcut alone is left."""
    example = load_example("se_resnet")

    class Closed(torch.nn.Module):
        def __init__(self, channels: int, ratio: float) -> None:
            super().__init__()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 0

    model = example.SEResNet(Closed, widths=(8, 16), depths=(2, 2)).eval()
    assert list(model.se_layers()) == ["block 1", "block 2", "block 3", "block 4"]
    for block in model.blocks:
        images = torch.randn(2, block.conv1[0].in_channels, 8, 8)
        assert torch.equal(block(images), torch.relu(block.shortcut(images)))
