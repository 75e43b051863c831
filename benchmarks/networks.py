"""The networks whose training steps are timed, each with plain SE, fused SE and no SE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.precision import full_float32
from examples.irse50 import IRSE50
from seblock_cuda import squeeze_excitation
from seblock_cuda.reference import PlainSEBlock

SE_KINDS = ("plain", "fused", "none")
AGREEMENT = 1e-3  # of the largest logit, float32: far above rounding, far below a wrong layer
CHECK_BATCH = 2


@dataclass(frozen=True)
class Network:
    """A network and the batch and image size that it is trained with here."""

    name: str
    make: Callable[[int], nn.Module]  # from the image size, with plain SE
    batch: int = 128
    size: int = 224


def _timm(name: str) -> Callable[[int], nn.Module]:
    def make(size: int) -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name)
        return model

    return make


NETWORKS = {
    network.name: network
    for network in (
        Network("seresnet50", _timm("seresnet50")),
        Network("efficientnet_b0", _timm("efficientnet_b0")),
        Network("mobilenetv3_large_100", _timm("mobilenetv3_large_100")),
        Network("regnety_016", _timm("regnety_016")),
        Network("irse50", lambda size: IRSE50(PlainSEBlock, size=size), size=112),
    )
}


def variant(network: Network, se: str, size: int, seed: int = 0) -> nn.Module:
    """The network with SE of that kind; the same weights for the same seed.

    Raises:
        ValueError: it has no SE layer that is known here, or not all of them could be changed.
    """
    torch.manual_seed(seed)
    model = network.make(size)
    layers = sum(parts_of(module) is not None for module in model.modules())
    changed = {"plain": lambda _: layers, "fused": fuse, "none": remove}[se](model)
    if not layers or changed != layers:
        raise ValueError(f"{network.name}: {changed} of {layers} SE layers are {se}")
    _open_branches(model)
    return model


def _open_branches(model: nn.Module) -> None:
    """Some networks start with residual branches multiplied by 0: SE would work for nothing."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.ones_(module.weight)


def disagreement(plain: nn.Module, fused: nn.Module, images: Tensor) -> float:
    """How far apart the outputs are, over the largest one.

    As in inference: the statistics of a small batch would make rounding large.
    """
    outputs = []
    with torch.no_grad(), full_float32():
        for model in (plain, fused):
            outputs.append(model.eval()(images))
            model.train()
    difference = (outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max()
    return difference.item()


def fuse(model: nn.Module) -> int:
    """Puts this package's layer in the place of every SE layer; how many it did."""
    try:
        from seblock_cuda import convert_se_modules
    except ImportError:
        return _replace(model, _FusedSE)
    before = [type(module) for module in model.modules()]
    convert_se_modules(model)
    after = [type(module) for module in model.modules()]
    return sum(old is not new for old, new in zip(before, after, strict=True))


def remove(model: nn.Module) -> int:
    """Takes every SE layer out; how many there were."""
    return _replace(model, lambda layer: nn.Identity())


# ---- for as long as the package has no converter

# class name -> the attributes that hold reduce, activation, expand and gate
_KNOWN = {
    "SEModule": ("fc1", "act", "fc2", "gate"),  # timm.layers
    "SqueezeExcite": ("conv_reduce", "act1", "conv_expand", "gate"),  # timm's EfficientNets
    "PlainSEBlock": ("reduce", "", "expand", ""),
}
_NAMES = {
    "ReLU": "relu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
    "Hardsigmoid": "hardsigmoid",
}


def parts_of(layer: nn.Module) -> tuple[nn.Conv2d, str, nn.Conv2d, str] | None:
    """reduce, activation, expand and gate of an SE layer; None if it is none."""
    names = _KNOWN.get(type(layer).__name__)
    if names is None:
        return None
    reduce, activation, expand, gate = (getattr(layer, name, None) for name in names)
    return (
        reduce,
        _NAMES[type(activation).__name__] if activation is not None else "relu",
        expand,
        _NAMES[type(gate).__name__] if gate is not None else "sigmoid",
    )


class _FusedSE(nn.Module):
    """The same layer with the same Parameters."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        parts = parts_of(layer)
        assert parts is not None
        self.reduce, self.activation, self.expand, self.gate = parts

    def forward(self, x: Tensor) -> Tensor:
        return squeeze_excitation(
            x,
            self.reduce.weight,
            self.expand.weight,
            self.reduce.bias,
            self.expand.bias,
            activation=self.activation,
            gate=self.gate,
        )


def _replace(model: nn.Module, make: Callable[[nn.Module], nn.Module]) -> int:
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if parts_of(child) is not None
    ]
    for parent, name, child in found:
        setattr(parent, name, make(child))
    return len(found)
