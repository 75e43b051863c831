"""The demo: it runs, says what it has to say, and compares like with like."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from se_resnet import PlainSEResidual, SEBasicBlock, SEBottleneck, SEResNet

import seblock_cuda
from seblock_cuda import SEResidual

EXAMPLES = Path(__file__).parents[1] / "examples"


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


def test_an_interrupt_ends_the_demo_in_a_word(tmp_path: Path) -> None:
    for library in ("sklearn", "matplotlib", "tqdm", "tabulate"):
        pytest.importorskip(library)
    package = str(Path(seblock_cuda.__file__).parents[1])
    demo = subprocess.Popen(
        [sys.executable, EXAMPLES / "train.py", "--device", "cpu"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": package, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert demo.stdout and demo.stdout.readline()  # it is at work
    demo.send_signal(signal.SIGINT)
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert errors.rstrip().endswith("interrupted") and "Traceback" not in errors


def test_networks_start_equal_with_either_layer() -> None:
    states = []
    for layer in (SEResidual, PlainSEResidual):
        torch.manual_seed(3)
        states.append(SEResNet(layer).state_dict())
    fused, plain = states
    assert list(fused) == list(plain)
    assert all(torch.equal(fused[name], plain[name]) for name in fused)


@pytest.mark.parametrize("block_type", [SEBasicBlock, SEBottleneck])
def test_every_residual_block_has_se_before_the_shortcut(
    block_type: type[SEBasicBlock] | type[SEBottleneck],
) -> None:
    """With gates of 0 the branch vanishes and the shortcut alone is left."""

    class Closed(torch.nn.Module):
        def __init__(self, channels: int, ratio: float) -> None:
            super().__init__()

        def forward(self, x: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
            return torch.relu(x * 0 + shortcut)

    model = SEResNet(Closed, block=block_type, widths=(8, 16), depths=(2, 2)).eval()
    assert list(model.se_layers()) == ["block 1", "block 2", "block 3", "block 4"]
    for block in model.blocks:
        images = torch.randn(2, block.conv1[0].in_channels, 8, 8)
        assert torch.equal(block(images), torch.relu(block.shortcut(images)))
