"""Layers of packages that are too heavy for these tests: their classes, written down again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from seblock_cuda import convert_se_modules
from tests.models import check_same, identities, results

C, R = 16, 4


class SEModule(nn.Module):
    """Of IR-SE face networks."""

    def __init__(self, channels: int = C, reduction: int = 4) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, channels // reduction, kernel_size=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(channels // reduction, channels, kernel_size=1, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        module_input = x
        x = self.avg_pool(x)
        x = self.fc1(x)
        x = self.relu(x)
        x = self.fc2(x)
        x = self.sigmoid(x)
        return module_input * x


class PytorchcvSEBlock(nn.Module):
    """Of pytorchcv, with convolutions or linear layers."""

    def __init__(self, use_conv: bool) -> None:
        super().__init__()
        self.use_conv = use_conv
        self.pool = nn.AdaptiveAvgPool2d(output_size=1)
        if use_conv:
            self.conv1 = nn.Conv2d(C, R, 1)
        else:
            self.fc1 = nn.Linear(C, R)
        self.activ = nn.SiLU(inplace=True)
        if use_conv:
            self.conv2 = nn.Conv2d(R, C, 1)
        else:
            self.fc2 = nn.Linear(R, C)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        w = self.pool(x)
        if not self.use_conv:
            w = w.view(x.size(0), -1)
        w = self.conv1(w) if self.use_conv else self.fc1(w)
        w = self.activ(w)
        w = self.conv2(w) if self.use_conv else self.fc2(w)
        w = self.sigmoid(w)
        if not self.use_conv:
            w = w.unsqueeze(2).unsqueeze(3)
        return x * w


class HSigmoid(nn.Module):
    """Of mmcv: its defaults changed once from (x + 1) / 2 to (x + 3) / 6."""

    def __init__(self, bias: float = 3.0, divisor: float = 6.0) -> None:
        super().__init__()
        self.bias, self.divisor = bias, divisor

    def forward(self, x: Tensor) -> Tensor:
        x = (x + self.bias) / self.divisor
        return x.clamp_(0.0, 1.0)


class ConvModule(nn.Module):
    """Of mmcv, as far as SE needs it."""

    def __init__(self, ins: int, outs: int, activate: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(ins, outs, 1)
        self.activate = activate
        self.order = ("conv", "norm", "act")

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        for layer in self.order:
            if layer == "conv":
                x = self.conv(x)
            elif layer == "act" and activate:
                x = self.activate(x)
        return x


class MMSELayer(nn.Module):
    """Of mmpretrain."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.conv1 = ConvModule(C, R, nn.ReLU())
        self.conv2 = ConvModule(R, C, gate)

    def forward(self, x: Tensor) -> Tensor:
        out = self.global_avgpool(x)
        out = self.conv1(out)
        out = self.conv2(out)
        return x * out


class SCSEModule(nn.Module):
    """Of segmentation_models: a second gate over space."""

    def __init__(self) -> None:
        super().__init__()
        self.cSE = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(C, R, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(R, C, 1),
            nn.Sigmoid(),
        )
        self.sSE = nn.Sequential(nn.Conv2d(C, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.cSE(x) + x * self.sSE(x)


class SpeechSE(nn.Module):
    """Of SpeechBrain: it averages over the valid part of each sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(C, R, 1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv1d(R, C, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        s = x.mean(dim=2, keepdim=True) if lengths is None else x * lengths
        return self.sigmoid(self.conv2(self.relu(self.conv1(s)))) * x


HANDLED: dict[str, Callable[[], nn.Module]] = {
    "IR-SE": SEModule,
    "pytorchcv, convolutions": lambda: PytorchcvSEBlock(True),
    "pytorchcv, linear": lambda: PytorchcvSEBlock(False),
    "mmpretrain": lambda: MMSELayer(nn.Sigmoid()),
    "mmpretrain, HSigmoid": lambda: MMSELayer(HSigmoid()),
}
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "mmpretrain, old HSigmoid": (lambda: MMSELayer(HSigmoid(1.0, 2.0)), "no activation and gate"),
    "segmentation_models": (SCSEModule, "runs 3 pointwise layers"),
    "SpeechBrain": (SpeechSE, "lengths"),
}


@pytest.mark.parametrize("name", HANDLED)
def test_handled(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(HANDLED[name]())
    x = torch.randn(3, C, 6, 5)
    before, expected = list(identities(model)), results(model, x)
    report = convert_se_modules(model)
    assert [entry.action for entry in report] == ["converted"], report
    assert list(identities(model)) == before
    check_same(results(model, x), expected, 1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, reason = REFUSED[name]
    (entry,) = convert_se_modules(nn.Sequential(make()))
    assert entry.action == "left" and reason in entry.reason, entry


def test_the_gate_alone_of_a_block_is_named() -> None:
    """A pooling, two convolutions and a gate: the product is in the block around it."""

    class Inline(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(C, C, 3, padding=1)
            self.attention = SCSEModule().cSE

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return x * self.attention(x)

    (entry,) = convert_se_modules(nn.Sequential(Inline()))
    assert entry.path == "0.attention" and "gate only" in entry.reason


@pytest.mark.parametrize("gate, action", [("PPLCNet", "converted"), ("PP-OCR", "left")])
def test_paddle_s_layers_in_transformers(gate: str, action: str) -> None:
    """PPLCNet's own class; the other one has Paddle's hard sigmoid, clamp(0.2 x + 0.5)."""
    if gate == "PPLCNet":
        name = "transformers.models.pp_lcnet.modeling_pp_lcnet"
        layer = pytest.importorskip(name).PPLCNetSqueezeExcitationModule(C)
    else:
        layer = MMSELayer(HSigmoid(2.5, 5.0))
    (entry,) = convert_se_modules(nn.Sequential(layer))
    assert entry.action == action, entry
