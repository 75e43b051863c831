"""Look-alikes of SE are refused with a reason; none is converted wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seblock_cuda import SEBlock, convert_se_modules
from seblock_cuda.reference import PlainSEBlock
from tests.models import C, Convolutions, MaxPool, R, SELayer, types

timm_se = pytest.importorskip("timm.layers.squeeze_excite")
torchvision = pytest.importorskip("torchvision")


class AddsInput(SELayer):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class WithDropout(SELayer):
    """Its dropout has nothing to do with a gate in evaluation, where it looks like a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.drop(self.gate(x))


class CbamLike(SELayer):
    def __init__(self) -> None:
        super().__init__()
        self.max_pool = nn.AdaptiveMaxPool2d(1)

    def gate(self, x: Tensor) -> Tensor:
        return super().gate(x) + super().gate(self.max_pool(x))


class WithNorm(Convolutions):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.bn = nn.BatchNorm2d(R)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.bn(self.first(self.pool(x))))
        return x * torch.sigmoid(self.second(z))


class ChannelsLast(SELayer):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((1, 2), keepdim=True))


class ClampGate(Convolutions):
    def forward(self, x: Tensor) -> Tensor:
        z = self.second(F.relu(self.first(F.adaptive_avg_pool2d(x, 1))))
        return x * torch.clamp(0.2 * z + 0.5, 0.0, 1.0)


class NearlyReLU(SELayer):
    """A ReLU up to 6: equal wherever a lazy check looks."""

    def __init__(self) -> None:
        super().__init__()
        self.fc[1] = nn.ReLU6()


class Lengths(SELayer):
    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return super().forward(x)


class KeywordArguments(SELayer):
    def forward(self, x: Tensor, **options: object) -> Tensor:
        return super().forward(x)


class GateOnly(SELayer):
    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x)


class Twice(SELayer):
    """Overrides forward, and calls what it overrides."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class OfThePooled(SELayer):
    """Multiplies something else than its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) * self.gate(x)


class InPlace(SELayer):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.gate(x))


class KeepsItsGate(SELayer):
    def forward(self, x: Tensor) -> Tensor:
        self.last = self.gate(x)
        return x * self.last


class BySize(SELayer):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x) if x.shape[2] < 32 else x


class InTraining(SELayer):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x * self.gate(x) if self.training else x * self.gate(x)


class Temperature(SELayer):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x) * self.temperature


class Grouped(Convolutions):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.first = nn.Conv2d(C, R, 1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.second(F.relu(self.first(self.pool(x)))))


class OwnCopy(SELayer):
    def __deepcopy__(self, memo: Any) -> Any:
        return self


class TunedLinear(nn.Linear):
    """As low-rank adapters do: a Linear that does more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Adapted(SELayer):
    def __init__(self) -> None:
        super().__init__()
        self.fc[0] = TunedLinear(C, R)


def hooked() -> nn.Module:
    layer = SELayer()
    layer.fc[0].register_forward_hook(lambda *_: None)
    return layer


def parametrized() -> nn.Module:
    layer = timm_se.SEModule(C, rd_channels=R)
    nn.utils.parametrizations.weight_norm(layer.fc1)
    return layer


def patched() -> nn.Module:
    layer = SELayer()
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


def tuple_returned() -> nn.Module:
    class WithGate(SELayer):
        def forward(self, x: Tensor) -> Any:
            y = x * self.gate(x)
            return y, y

    return WithGate()


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "maximum": (MaxPool, "uses amax"),
    "maximum of a pooling": (CbamLike, "AdaptiveMaxPool2d (max_pool) takes part"),
    "timm's maximum": (lambda: timm_se.SEModule(C, add_maxpool=True), "add_maxpool"),
    "norm": (WithNorm, "buffer (bn.running_mean)"),
    "timm's norm": (lambda: timm_se.SEModule(C, norm_layer=nn.BatchNorm2d), "bn is a BatchNorm2d"),
    "timm's gate": (lambda: timm_se.SEModule(C, gate_layer=nn.Tanh), "gate is Tanh()"),
    "NHWC": (ChannelsLast, "does not take"),
    "timm's NHWC": (lambda: timm_se.SqueezeExciteCl(C), "[N, H, W, C]"),
    "clamp": (ClampGate, "no activation and gate"),
    "ReLU6": (NearlyReLU, "no activation and gate"),
    "adds its input": (AddsInput, "no activation and gate"),
    "dropout": (WithDropout, "Dropout (drop) takes part"),
    "lengths": (Lengths, "lengths"),
    "keywords": (KeywordArguments, "options"),
    "gate only": (GateOnly, "gate only"),
    "calls what it overrides": (Twice, "no activation and gate"),
    "another input": (OfThePooled, "no activation and gate"),
    "in place": (InPlace, "in place"),
    "keeps something": (KeepsItsGate, "changes the module's own attributes"),
    "depends on the size": (BySize, "cannot be read"),
    "depends on training": (InTraining, "numbers"),
    "a parameter of its own": (Temperature, "temperature"),
    "groups": (Grouped, "not a plain pointwise one"),
    "own copy": (OwnCopy, "its own __deepcopy__"),
    "adapter": (Adapted, "uses fc.0.weight directly"),
    "hooks": (hooked, "hooks on fc.0"),
    "parametrized": (parametrized, "parametrized on fc1"),
    "patched": (patched, "forward was replaced"),
    "tuple": (tuple_returned, "returns a tuple"),
    "quantizable": (
        lambda: torchvision.models.quantization.mobilenetv3.QuantizableSqueezeExcitation(C, R),
        "quantised",
    ),
    "lazy": (lambda: _with(SELayer(), nn.LazyLinear(R)), "lazy"),
    "scripted": (lambda: torch.jit.script(PlainSEBlock(C, 1 / 4)), "ScriptModule"),
}


def _with(layer: SELayer, first: nn.Module) -> nn.Module:
    layer.fc[0] = first
    return layer


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, training: bool) -> None:
    make, reason = REFUSED[name]
    model = nn.Sequential(nn.Identity(), make()).train(training)
    kinds = types(model)
    attributes = set(model[1].__dict__)
    (entry,) = convert_se_modules(model)
    assert entry.action == "left" and reason in entry.reason, entry
    assert entry.path == "1" and types(model) == kinds
    assert set(model[1].__dict__) == attributes  # a look leaves no trace


def test_a_dynamically_quantized_layer_is_left() -> None:
    model = nn.Sequential(SELayer())
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    (entry,) = convert_se_modules(quantized)
    assert entry.action == "left", entry


def test_what_is_not_se_is_not_in_the_report() -> None:
    bottleneck = nn.Sequential(nn.Conv2d(C, R, 1), nn.ReLU(), nn.Conv2d(R, C, 1))
    attention = nn.TransformerEncoderLayer(16, 2, 8)
    report = convert_se_modules(
        nn.ModuleList([bottleneck, attention, nn.Linear(C, C), SEBlock(C, 1)])
    )
    assert len(report) == 0 and str(report) == "no SE layers found"


def test_inline_se_is_reported() -> None:
    class MBConvBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._se_reduce = nn.Conv2d(C, R, 1)
            self._depthwise_conv = nn.Conv2d(C, C, 3, groups=C)
            self._se_expand = nn.Conv2d(R, C, 1)

    (entry,) = convert_se_modules(nn.Sequential(MBConvBlock()))
    assert entry.action == "left" and "no module to replace" in entry.reason
