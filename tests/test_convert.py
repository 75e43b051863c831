"""Layers that look like SE: refused with a reason, or handled; none is converted wrongly."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seblock_cuda import SEBlock, convert_se_modules, revert_se_modules
from seblock_cuda.convert import recipe_of
from seblock_cuda.convert_recipe import FusedSE
from seblock_cuda.reference import PlainSEBlock
from tests import cases
from tests.models import SELayer, check_same, identities, results, types

timm_se = pytest.importorskip("timm.layers.squeeze_excite")
torchvision = pytest.importorskip("torchvision")

C, R = 12, 3


class Convolutions(nn.Module):
    """Two 1x1 convolutions, declared in the wrong order, under names that say nothing."""

    kind: type[nn.Module] = nn.Conv2d

    def __init__(self) -> None:
        super().__init__()
        self.second = self.kind(R, C, 1)
        self.first = self.kind(C, R, 1)

    def gate(self, x: Tensor) -> Tensor:
        pooled = x.mean(dim=(2, 3), keepdim=True)
        return torch.sigmoid(self.second(F.silu(self.first(pooled))))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x) * x


class OneDimensional(Convolutions):
    kind = nn.Conv1d

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool1d(x, 1)
        return torch.mul(x, F.hardsigmoid(self.second(F.gelu(self.first(pooled)))))


class WrittenOutGate(SELayer):
    """mmcv's and others' way to write the hard sigmoid."""

    def forward(self, x: Tensor) -> Tensor:
        b, c = x.shape[:2]
        z = self.fc[2](F.leaky_relu(self.fc[0](x.flatten(2).mean(-1))))
        return x * (F.relu6(z + 3) / 6).reshape(b, c, 1, 1)


class ESELayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.project = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.project(self.pool(x)))


class WithDropout(SELayer):
    """Its dropout has nothing to do with a gate in evaluation, where it looks like a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.drop(self.gate(x))


class AddsInput(SELayer):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class RectangularPool(SELayer):
    def forward(self, x: Tensor) -> Tensor:
        b, c = x.shape[:2]
        return x * self.fc(x.mean(3).mean(2)).view(b, c, 1, 1)


HANDLED: dict[str, Callable[[], nn.Module]] = {
    "Linear": SELayer,
    "Linear with bias": lambda: SELayer(bias=True),
    "order of children": Convolutions,
    "1-D": OneDimensional,
    "written-out gate": WrittenOutGate,
    "effective": ESELayer,
    "two means": RectangularPool,
    "the plain block": lambda: PlainSEBlock(C, 1 / 4),
    "timm": lambda: timm_se.SEModule(C, rd_channels=R, act_layer="silu", gate_layer="hard_sigmoid"),
    "timm ese": lambda: timm_se.EffectiveSEModule(C),
    "torchvision": lambda: torchvision.ops.SqueezeExcitation(C, R, nn.Hardswish, nn.Hardsigmoid),
}


@pytest.mark.parametrize("name", HANDLED)
def test_handled(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(HANDLED[name]())
    x = torch.randn(3, C, 5, 4) if name != "1-D" else torch.randn(3, C, 7)
    before, kinds, expected = list(identities(model)), types(model), results(model, x)
    report = convert_se_modules(model)
    assert [entry.action for entry in report] == ["converted"], report
    assert isinstance(model[0], FusedSE) and list(identities(model)) == before
    check_same(results(model, x), expected, 1e-5)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        check_same(results(copied, x), expected, 1e-5)
        assert list(copied.state_dict()) == list(model.state_dict())
        revert_se_modules(copied)
        assert types(copied) == kinds and isinstance(model[0], FusedSE)
    assert revert_se_modules(model) == 1 and types(model) == kinds


@pytest.mark.parametrize("name", HANDLED)
def test_bfloat16_error_is_not_above_plain_pytorch_s(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(HANDLED[name]()).bfloat16()
    x = torch.randn(16, C, *((63,) if name == "1-D" else (9, 7))).bfloat16()
    truth = results(copy.deepcopy(model).double(), x.double())
    plain = results(model, x)
    convert_se_modules(model)
    for key, value in results(model, x).items():
        error = cases.rms(value.double() - truth[key])
        rounding = torch.finfo(value.dtype).eps / 2 * cases.rms(truth[key])
        assert error <= max(cases.rms(plain[key].double() - truth[key]), rounding), key


class MaxPool(SELayer):
    def gate(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        return self.fc(x.mean((2, 3)) + x.amax((2, 3))).view(b, c, 1, 1)


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


class OwnStateDict(SELayer):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return super().state_dict(*args, **kwargs)


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
    "own state_dict": (OwnStateDict, "its own state_dict"),
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


def test_a_shared_layer_is_replaced_everywhere() -> None:
    torch.manual_seed(0)
    shared = SELayer()
    model = nn.ModuleDict({"a": nn.Sequential(shared, shared), "b": shared, "c": SELayer()})
    x = torch.randn(2, C, 3, 3)
    expected = model["a"](x)
    report = convert_se_modules(model)
    assert [entry.path for entry in report] == ["a.0, a.1, b", "c"]
    assert model["a"][0] is model["a"][1] is model["b"] and isinstance(model["b"], FusedSE)
    assert torch.allclose(model["a"](x), expected, atol=1e-6)
    assert revert_se_modules(model) == 2
    assert model["a"][0] is model["a"][1] is model["b"] is shared


def test_inputs_of_another_rank_go_to_the_original() -> None:
    """torchvision's layer takes [C, H, W]; with H = C the op would take it for [N, C, L]."""
    layer = torchvision.ops.SqueezeExcitation(C, R)
    model = nn.Sequential(layer)
    x = torch.randn(C, C, 5)
    expected = layer(x)
    convert_se_modules(model)
    assert torch.equal(model(x), expected)


def test_ranks_of_linear_layers_are_proved() -> None:
    """A Linear says nothing of the input's rank, and so does a mean over what is flattened."""
    recipe = recipe_of(WrittenOutGate())
    assert recipe is not None and recipe.ranks == (4,)


def test_the_model_itself_cannot_be_replaced() -> None:
    (entry,) = convert_se_modules(SELayer())
    assert entry.action == "left" and "the model itself" in entry.reason


def test_without_verification() -> None:
    known, unknown = timm_se.SEModule(C), SELayer()
    report = convert_se_modules(nn.Sequential(known, unknown, MaxPool()), verify=False)
    assert [entry.action for entry in report] == ["converted", "converted", "left"]
    assert all(entry.difference is None for entry in report)


def test_converting_twice_changes_nothing_more() -> None:
    model = nn.Sequential(SELayer())
    convert_se_modules(model)
    fused = model[0]
    assert len(convert_se_modules(model)) == 0 and model[0] is fused
    assert revert_se_modules(model) == 1 and revert_se_modules(model) == 0


def test_a_wrong_known_class_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof does not trust names: a class of a known name that computes something else."""
    monkeypatch.setattr(
        timm_se.SEModule,
        "forward",
        lambda self, x: x * self.gate(self.fc2(self.act(self.fc1(x.amax((2, 3), keepdim=True))))),
    )
    (entry,) = convert_se_modules(nn.Sequential(timm_se.SEModule(C)))
    assert entry.action == "left" and "numbers differ" in entry.reason


def test_the_report() -> None:
    report = convert_se_modules(nn.Sequential(SELayer(), MaxPool()))
    text = str(report).splitlines()
    assert text[0].split() == ["path", "class", "action", "largest", "difference", "reason"]
    assert text[2].startswith("0 ") and "converted" in text[2]
    assert "uses amax" in text[3] and text[-1] == "1 converted, 1 left"


def test_state_of_the_caller_is_untouched() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        layer = SELayer().to_empty(device="cpu").eval().requires_grad_(False)
        report = convert_se_modules(nn.Sequential(layer))
    assert len(report.converted) == 1
    assert not layer.training and not any(p.requires_grad for p in layer.parameters())
    assert torch.equal(torch.rand(1), expected)


def test_training_mode_follows() -> None:
    model = nn.Sequential(SELayer())
    convert_se_modules(model)
    model.eval()
    revert_se_modules(model)
    assert not model[0].training and not model[0].fc.training


def test_no_library_is_imported() -> None:
    code = (
        "import sys, seblock_cuda, torch\n"
        "seblock_cuda.convert_se_modules(torch.nn.Sequential(torch.nn.Linear(2, 2)))\n"
        "names = {'timm', 'torchvision', 'transformers', 'monai', 'matplotlib', 'onnx'}\n"
        "assert not names & set(sys.modules), names & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
