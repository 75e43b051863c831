"""How a foreign SE layer is run by the op: its recipe, and the module that follows it.

Layers of libraries are known by their full name, so that nothing is imported for it; any other
class is read by :mod:`seblock_cuda.convert_structure`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seblock_cuda.functional import squeeze_excitation
from seblock_cuda.layers import Operands, SELayer, identity_for, name_of
from seblock_cuda.reference import ACTIVATIONS, GATES

POINTWISE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_CONV_RANK: dict[type, int] = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
_POOL_RANK: dict[type, int] = {
    nn.AdaptiveAvgPool1d: 3,
    nn.AdaptiveAvgPool2d: 4,
    nn.AdaptiveAvgPool3d: 5,
}


class Refused(Exception):
    """A layer stays as it is; the message is the reason."""


@dataclass(frozen=True)
class Recipe:
    """What the op needs to know of a layer.

    Attributes:
        reduce: the path of the first projection, as names of children; empty if there is none.
        expand: the path of the second one.
        activation, gate: their names in the op.
        ranks: how many dimensions the input may have; any other goes to the original's forward.
        adds_input: whether the input is added to the result.
    """

    reduce: tuple[str, ...]
    expand: tuple[str, ...]
    activation: str
    gate: str
    ranks: tuple[int, ...]
    adds_input: bool = False


class FusedSE(SELayer):
    """A foreign SE layer through the op: its very own children and parameters, another forward.

    It shares the original's dictionaries, so that names, order and identity of all that the
    original holds are unchanged, also after later assignments on either of them.
    """

    original: nn.Module
    recipe: Recipe

    def __init__(self, original: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        names = (recipe.activation, recipe.gate)
        # straight into the dictionary: as a child, the original would double every key
        self.__dict__.update(original.__dict__, original=original, recipe=recipe, names=names)

    def _at(self, path: tuple[str, ...]) -> Any:
        module: Any = self
        for name in path:
            module = module._modules[name]
        return module

    def operands(self, inputs: Tensor) -> Operands:
        expand = self._at(self.recipe.expand)
        if not self.recipe.reduce:
            return identity_for(expand.weight, inputs), expand.weight, None, expand.bias
        reduce = self._at(self.recipe.reduce)
        return reduce.weight, expand.weight, reduce.bias, expand.bias

    def forward(self, inputs: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """The original's result; with a shortcut ``relu(result + shortcut)``, in one pass."""
        if inputs.dim() not in self.recipe.ranks:
            y: Tensor = self.original(inputs)
            return y if shortcut is None else torch.relu(y + shortcut)
        if shortcut is not None and (
            self.recipe.adds_input
            or shortcut.dtype != inputs.dtype
            or shortcut.shape != inputs.shape
        ):
            return torch.relu(self(inputs) + shortcut)
        activation, gate = self.names
        return squeeze_excitation(
            inputs,
            *self.operands(inputs),
            activation=activation,
            gate=gate,
            residual=inputs if self.recipe.adds_input else shortcut,
            residual_activation=None if shortcut is None else "relu",
        )

    def extra_repr(self) -> str:
        return f"{full_name(self.original)}, {super().extra_repr()}"


@dataclass(frozen=True)
class _Known:
    """Where a class keeps its parts; an activation without a child is named by ``=name``."""

    reduce: str
    activation: str
    expand: str
    gate: str
    refuse: Callable[[Any], str | None] = lambda module: None
    adds_input: Callable[[Any], bool] = lambda module: False


def _timm_refusal(module: Any) -> str | None:
    if module.add_maxpool:
        return "add_maxpool: half of the squeeze is a maximum"
    bn = getattr(module, "bn", None)
    if bn is not None and type(bn) is not nn.Identity:
        return f"bn is a {type(bn).__name__}: there is a normalisation within the squeeze"
    return None


_MONAI = _Known("fc.0", "fc.1", "fc.2", "fc.3", adds_input=lambda module: module.add_residual)
_PPLCNET = _Known("convolutions.0", "convolutions.1", "convolutions.2", "convolutions.3")

KNOWN: dict[str, _Known] = {
    "seblock_cuda.reference.PlainSEBlock": _Known("reduce", "=relu", "expand", "=sigmoid"),
    "torchvision.ops.misc.SqueezeExcitation": _Known(
        "fc1", "activation", "fc2", "scale_activation"
    ),
    "timm.layers.squeeze_excite.SEModule": _Known("fc1", "act", "fc2", "gate", _timm_refusal),
    "timm.layers.squeeze_excite.EffectiveSEModule": _Known("", "", "fc", "gate", _timm_refusal),
    "timm.models._efficientnet_blocks.SqueezeExcite": _Known(
        "conv_reduce", "act1", "conv_expand", "gate"
    ),
    "timm.models.hgnet.EseModule": _Known("", "", "conv", "sigmoid"),
    "timm.models.senet.SEModule": _Known("fc1", "relu", "fc2", "sigmoid"),
    "monai.networks.blocks.squeeze_and_excitation.ChannelSELayer": _MONAI,
    "monai.networks.blocks.squeeze_and_excitation.ResidualSELayer": _MONAI,
    "transformers.models.efficientnet.modeling_efficientnet.EfficientNetSqueezeExciteLayer": (
        _Known("reduce", "act_reduce", "expand", "act_expand")
    ),
    "transformers.models.regnet.modeling_regnet.RegNetSELayer": _Known(
        "attention.0", "attention.1", "attention.2", "attention.3"
    ),
    "transformers.models.pp_lcnet.modeling_pp_lcnet.PPLCNetSqueezeExcitationModule": _PPLCNET,
}

# class -> why it stays as it is, whatever its parts
NEVER: dict[str, str] = {
    "timm.layers.squeeze_excite.SqueezeExciteCl": "its input is [N, H, W, C] by shape",
    "torchvision.models.quantization.mobilenetv3.QuantizableSqueezeExcitation": (
        "it is made to be quantised: its multiplication is observed"
    ),
}


def full_name(module: nn.Module) -> str:
    """The class with the module that defines it."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def known_recipe(module: nn.Module) -> Recipe | None:
    """The recipe of a layer whose very class is known; None for any other.

    Raises:
        Refused: the class is known, this layer of it cannot be run by the op.
    """
    name = full_name(module)
    if name in NEVER:
        raise Refused(NEVER[name])
    known = KNOWN.get(name)
    if known is None:
        return None
    try:
        reason = known.refuse(module)
        projections = [_child(module, path) for path in (known.reduce, known.expand) if path]
        activation = "identity" if not known.reduce else _named(module, known.activation)
        gate = _named(module, known.gate, GATES)
    except (AttributeError, KeyError) as error:
        raise Refused(f"another version of {name} than the one that is known: {error}") from None
    if reason:
        raise Refused(reason)
    widths = projection_widths(projections)
    return Recipe(
        tuple(known.reduce.split(".")) if known.reduce else (),
        tuple(known.expand.split(".")),
        activation,
        gate,
        (rank_of(module, projections) or 4,) if widths else (),
        known.adds_input(module),
    )


def _child(module: nn.Module, path: str) -> nn.Module:
    return module.get_submodule(path)


def _named(module: nn.Module, path: str, known: dict[str, Any] = ACTIVATIONS) -> str:
    if path.startswith("="):
        return path[1:]
    # some classes keep a function here (transformers' ACT2FN gives modules)
    function = module
    for part in path.split("."):
        function = getattr(function, part)
    name = name_of(function, known)
    if name is None:
        raise Refused(f"{path} is {function}: the op knows {', '.join(known)}")
    return name


def projection_widths(projections: list[nn.Module]) -> tuple[int, int]:
    """(C, R) of plain pointwise layers C -> R -> C, or of the one layer C -> C.

    Raises:
        Refused: they are something else.
    """
    widths = []
    for layer in projections:
        if type(layer) not in POINTWISE:
            raise Refused(f"a projection is a {full_name(layer)}, not a plain Conv or Linear")
        width = pointwise_width(layer)
        if width is None or not _is_plain(layer):
            raise Refused(f"a projection is not a plain pointwise one: {layer}")
        widths.append(width)
    (c, r), (r_too, c_too) = widths[0], widths[-1]
    if len(widths) == 1:
        r = r_too = c
    if (c, r) != (c_too, r_too):
        raise Refused(f"the projections are {widths}, not C to R to C")
    return c, r


def pointwise_width(layer: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a Linear or a 1x1 convolution; None for anything else."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and set(layer.kernel_size) == {1}:
        return layer.in_channels, layer.out_channels
    return None


def _is_plain(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        and set(layer.stride) == {1}
        and layer.groups == 1
        and (isinstance(layer.padding, str) or set(layer.padding) == {0})
    )


def rank_of(module: nn.Module, projections: list[nn.Module]) -> int | None:
    """How many dimensions the input has, by the class of a convolution or of the pooling."""
    for layer in projections:
        if type(layer) in _CONV_RANK:
            return _CONV_RANK[type(layer)]
    for child in module.modules():
        if type(child) in _POOL_RANK:
            return _POOL_RANK[type(child)]
    return None
