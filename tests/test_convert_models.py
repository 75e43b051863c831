"""Models of timm, torchvision and transformers: every SE layer is converted or refused with the
right reason, and the converted model is the same model.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seblock_cuda import convert_se_modules, revert_se_modules, use_fused_se
from tests import cases
from tests.models import check_same, identities, results, types

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

# name -> SE layers converted, and left with a reason that holds these words
TIMM = {
    "seresnet50": (16, 0, ""),
    "legacy_seresnet50": (16, 0, ""),
    "seresnext50_32x4d": (16, 0, ""),
    "efficientnet_b0": (16, 0, ""),
    "tf_efficientnetv2_s": (30, 0, ""),
    "mobilenetv3_large_100": (8, 0, ""),
    "regnety_016": (27, 0, ""),
    "ese_vovnet19b_dw": (4, 0, ""),
    "ghostnet_100": (7, 0, ""),
    "tresnet_m": (18, 0, ""),
    "rexnet_100": (0, 13, "bn is a BatchNorm2d"),
    "hgnet_tiny": (5, 0, ""),
}
TORCHVISION = {
    "efficientnet_b0": (16, 0, ""),
    "mobilenet_v3_large": (8, 0, ""),
    "regnet_y_400mf": (16, 0, ""),
}
MODELS = [*(("timm", name) for name in TIMM), *(("torchvision", name) for name in TORCHVISION)]


def make(library: str, name: str) -> nn.Module:
    """A model with random weights, in evaluation; no branch is silenced by a zero in its norm."""
    torch.manual_seed(0)
    created: nn.Module = (
        timm.create_model(name, num_classes=10)
        if library == "timm"
        else torchvision.models.get_model(name, num_classes=10)
    )
    return audible(created)


def audible(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
    return model.eval()


def together(each: dict[str, Tensor]) -> dict[str, Tensor]:
    """The output, and all gradients as one vector."""
    gradients = [value.flatten() for name, value in each.items() if name != "y"]
    return {"y": each["y"], "gradients": torch.cat(gradients)}


@pytest.mark.parametrize("library, name", MODELS)
def test_the_same_model(library: str, name: str) -> None:
    """Output and every gradient in float64; in float32 the output and the gradients together, since
    a rounding that flips one ReLU deep within moves a single one of them by a percent.
    """
    converted, left, reason = (TIMM if library == "timm" else TORCHVISION)[name]
    model = make(library, name)
    x = torch.randn(2, 3, 48, 48)
    expected, exact = results(model, x), results(copy.deepcopy(model).double(), x.double())
    before, kinds = list(identities(model)), types(model)

    report = convert_se_modules(model)
    assert (len(report.converted), len(report.left)) == (converted, left), report
    assert all(reason in entry.reason for entry in report.left)
    assert all(0 <= entry.difference < 1e-6 for entry in report.converted)
    assert list(identities(model)) == before
    check_same(results(copy.deepcopy(model).double(), x.double()), exact, 1e-5)
    check_same(together(results(model, x)), together(expected), 1e-2)

    assert revert_se_modules(model) == converted
    assert types(model) == kinds and list(identities(model)) == before


@pytest.mark.parametrize("name", ["legacy_seresnet18", "mobilenetv3_small_100"])
def test_bfloat16_is_as_exact_as_plain_pytorch(name: str) -> None:
    """Error of output and gradients against float64 over the same weights, in the mean of draws.

    One draw proves little: a network amplifies every rounding. tests/test_convert.py compares
    layers, without the slack.
    """
    errors = {"plain": 0.0, "ours": 0.0}
    for seed in range(3):
        model = make("timm", name).bfloat16()
        torch.manual_seed(seed)
        x = torch.randn(4, 3, 64, 64).bfloat16()
        truth = results(copy.deepcopy(model).double(), x.double())
        for which in errors:
            if which == "ours":
                convert_se_modules(model, verify=False)
            actual = results(model, x)
            each = [
                cases.rms(actual[name].double() - value) / (cases.rms(value) or 1.0)
                for name, value in truth.items()
            ]
            errors[which] += sum(each) / len(each)
    assert errors["ours"] <= 1.25 * errors["plain"]


@pytest.mark.parametrize("fuse_residual", [False, True])
def test_training_goes_on(fuse_residual: bool) -> None:
    """The optimiser that was made before the conversion trains the converted model alike."""
    torch.manual_seed(0)
    plain = timm.create_model("legacy_seresnet18", num_classes=10)
    fused = copy.deepcopy(plain)
    x, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    losses = []
    for model in (plain, fused):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        losses.append([])
        for step in range(4):
            if model is fused and step == 2:
                convert_se_modules(model, fuse_residual=fuse_residual)
            torch.manual_seed(step)  # the model has a dropout
            loss = nn.functional.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    plain.load_state_dict(fused.state_dict())
    fused.load_state_dict(plain.state_dict())


def test_plain_pytorch_by_a_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("timm", "mobilenetv3_small_100")
    convert_se_modules(model)
    x = torch.randn(2, 3, 64, 64)
    expected = results(model, x)
    monkeypatch.setattr("seblock_cuda._ops.se_forward", None)  # the kernels must not be called
    with use_fused_se(False):
        check_same(together(results(model, x)), together(expected), 1e-2)
        with use_fused_se(True), pytest.raises(TypeError):
            model(x)
        model(x)
    use_fused_se(False)
    model(x)
    use_fused_se()
    with pytest.raises(TypeError):
        model(x)


def test_meta_models() -> None:
    with torch.device("meta"):
        model = timm.create_model("mobilenetv3_large_100")
    report = convert_se_modules(model)
    assert len(report.converted) == 8 and not report.left
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)


def test_a_sample_of_the_scan() -> None:
    """The command that writes docs/timm.md, on a few models."""
    from build_tools import timm_scan

    found = timm_scan.scan(["hardcorenas_a", "rexnet_100", "resnet18", "no_such_model"])
    text = timm_scan.page(found)
    assert "3 models, 2 of them with SE layers" in text and "no_such_model" in text
    assert "| `timm.models._efficientnet_blocks.SqueezeExcite` | converted |" in text
    assert "bn is a BatchNorm2d" in text
    written = timm_scan.PAGE.read_text()
    assert f"timm {timm.__version__}, torch" in written


def huggingface(kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    if kind == "EfficientNet":
        config = transformers.EfficientNetConfig(
            width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320
        )
        return transformers.EfficientNetModel(config)
    config = transformers.RegNetConfig(
        embedding_size=8, hidden_sizes=[16, 24], depths=[1, 2], groups_width=8, layer_type="y"
    )
    return transformers.RegNetModel(config)


@pytest.mark.parametrize("kind", ["EfficientNet", "RegNet"])
def test_transformers(kind: str) -> None:
    torch.manual_seed(0)
    model = audible(huggingface(kind))
    x = torch.randn(2, 3, 64, 64)

    def run(model: nn.Module, x: Tensor) -> Tensor:
        return model(pixel_values=x).last_hidden_state

    before, expected = list(identities(model)), results(model, x, run)
    report = convert_se_modules(model)
    assert report.converted and not report.left, report
    assert list(identities(model)) == before
    check_same(together(results(model, x, run)), together(expected), 1e-2)
    assert revert_se_modules(model) == len(report.converted)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("kind", ["ChannelSELayer", "ResidualSELayer"])
def test_monai(kind: str, dimensions: int) -> None:
    blocks = pytest.importorskip("monai.networks.blocks")
    torch.manual_seed(0)
    model = nn.Sequential(getattr(blocks, kind)(dimensions, 12, r=3))
    x = torch.randn(2, 12, *(4, 3, 5)[:dimensions])
    before, expected = list(identities(model)), results(model, x)
    report = convert_se_modules(model)
    assert [entry.action for entry in report] == ["converted"], report
    assert list(identities(model)) == before
    check_same(results(model, x), expected, 1e-5)
