"""What the layers' constructors take and refuse, and what a layer says of itself."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from seblock_cuda import EffectiveSE, SEBlock, SEResidual, SqueezeExcitation, convert_se_modules
from tests.models import SELayer

REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a string for channels": (lambda: SEBlock("64", 1 / 4), TypeError, "input_channel.*got '64'"),
    "a float for channels": (lambda: SEBlock(64.0, 1 / 4), TypeError, "an int, got 64.0"),
    "a bool for channels": (lambda: EffectiveSE(True), TypeError, "channels must be an int"),
    "no channels": (lambda: SqueezeExcitation(0, 4), ValueError, "input_channels.*at least 1"),
    "no squeeze": (lambda: SqueezeExcitation(64, 0), ValueError, "squeeze_channels.*got 0"),
    "a string for the ratio": (lambda: SEBlock(64, "1/4"), TypeError, "ration must be a number"),
    "a name": (lambda: SqueezeExcitation(64, 4, "relu"), TypeError, "activation.*got 'relu'"),
    "a module": (
        lambda: SqueezeExcitation(64, 4, nn.ReLU, nn.Sigmoid()),
        TypeError,
        "scale_activation must make a module.*got Sigmoid()",
    ),
    "an unknown gate": (lambda: EffectiveSE(64, "tanh"), ValueError, "gate.*got 'tanh'"),
    "the name of a model": (
        lambda: convert_se_modules("resnet50"),
        TypeError,
        "model must be an nn.Module.*got 'resnet50'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("kind", [SEBlock, SEResidual])
def test_a_ratio_above_one_warns_and_works(kind: type[SEBlock]) -> None:
    with pytest.warns(UserWarning, match="16 makes 4096 hidden channels for 256") as caught:
        layer = kind(256, 16)
    assert caught[0].filename == __file__
    assert layer.reduce.weight.shape[0] == 4096
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind(64, 1), kind(64, 1 / 16)


@pytest.mark.parametrize("shape", [(2, 32, 4, 4), (2, 32, 4), (2, 32, 2, 2, 2)])
def test_an_input_of_other_channels(shape: tuple[int, ...]) -> None:
    """The layer says what it expects, converted ones too."""
    converted = nn.Sequential(SELayer(64, 4))
    convert_se_modules(converted)
    layers: list[nn.Module] = [SEBlock(64, 1 / 4), SqueezeExcitation(64, 4), EffectiveSE(64)]
    for layer in [*layers, *([converted] if len(shape) == 4 else [])]:
        with pytest.raises(ValueError, match=r"has 32 channels, this layer expects 64: \[2, 32"):
            layer(torch.randn(shape))


@pytest.mark.parametrize(
    ("make", "squeeze"),
    [
        (lambda: SEBlock(64, 1 / 16), 4),
        (lambda: SEResidual(64, 1 / 16), 4),
        (lambda: SqueezeExcitation(64, 6), 6),
        (lambda: EffectiveSE(64), 64),
    ],
)
def test_a_layer_tells_its_numbers(make: Callable[[], Any], squeeze: int) -> None:
    layer = copy.deepcopy(make())
    assert (layer.in_channels, layer.squeeze_channels) == (64, squeeze)
    assert f"64, squeeze={squeeze}, activation=" in repr(layer)


@pytest.mark.parametrize("make", [lambda: SEBlock(64, 1 / 16), lambda: SqueezeExcitation(64, 6)])
def test_parameters_are_drawn_anew(make: Callable[[], Any]) -> None:
    torch.manual_seed(5)
    layer = make()
    first = copy.deepcopy(layer.state_dict())
    layer.reset_parameters()
    assert not any(torch.equal(first[key], value) for key, value in layer.state_dict().items())
    torch.manual_seed(5)
    layer.reset_parameters()
    assert all(torch.equal(first[key], value) for key, value in layer.state_dict().items())
