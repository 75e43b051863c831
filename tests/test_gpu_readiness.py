"""What the tests need on a GPU, as far as it shows without one: devices, precision."""

from __future__ import annotations

import torch
from torch import nn

from tests import models


def test_gradients_start_on_the_device_of_y() -> None:
    """With the meta device in the GPU's place: it refuses a gradient of the CPU just so."""
    layer = nn.Conv2d(3, 2, 1, device="meta")
    found = models.results(layer, torch.empty(2, 3, 4, 4, device="meta"))
    assert set(found) == {"y", "x", "weight", "bias"}
    assert {value.device.type for value in found.values()} == {"meta"}


def test_no_test_compares_under_tf32() -> None:
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
