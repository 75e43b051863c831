"""Layers of many shapes are converted to the same numbers; what a conversion leaves as it was."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seblock_cuda import convert_se_modules, revert_se_modules
from seblock_cuda.convert import recipe_of
from seblock_cuda.fused import FusedSE
from seblock_cuda.reference import PlainSEBlock
from tests import cases
from tests.models import (
    C,
    Convolutions,
    MaxPool,
    R,
    SELayer,
    check_same,
    identities,
    results,
    types,
)

timm_se = pytest.importorskip("timm.layers.squeeze_excite")
torchvision = pytest.importorskip("torchvision")


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


def test_the_model_itself_is_converted() -> None:
    layer = SELayer()
    (entry,) = convert_se_modules(layer)
    assert entry.action == "converted" and isinstance(layer, FusedSE)
    assert revert_se_modules(layer) == 1 and type(layer) is SELayer


def test_without_verification() -> None:
    known, unknown = timm_se.SEModule(C), SELayer()
    report = convert_se_modules(nn.Sequential(known, unknown, MaxPool()), verify=False)
    assert [entry.action for entry in report] == ["converted", "converted", "left"]
    assert all(entry.difference is None for entry in report)


def test_converting_twice_changes_nothing_more() -> None:
    model = nn.Sequential(SELayer())
    convert_se_modules(model)
    fused = model[0]
    again = convert_se_modules(model)
    assert len(again) == 0 and model[0] is fused
    assert str(again) == "no SE layers found: 1 had been converted before"
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
