"""The layers of libraries, known by their full name: where each class keeps its parts.

Nothing is imported for it. Any other class is read by :mod:`seblock_cuda.convert.read`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from seblock_cuda.convert.projections import projection_widths, rank_of
from seblock_cuda.convert.report import Refused, full_name
from seblock_cuda.fused import Name, Recipe, name_of
from seblock_cuda.reference import ACTIVATIONS, GATES, Activation


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
        projections = [module.get_submodule(p) for p in (known.reduce, known.expand) if p]
        activation: Activation = "identity"
        if known.reduce:
            activation = _named(module, known.activation, ACTIVATIONS)
        gate = _named(module, known.gate, GATES)
    except (AttributeError, KeyError) as error:
        raise Refused(f"another version of {name} than the one that is known: {error}") from None
    if reason:
        raise Refused(reason)
    projection_widths(projections)
    ranks = (rank_of(module, projections) or 4,)
    return Recipe(known.reduce, known.expand, activation, gate, ranks, known.adds_input(module))


def _named(module: nn.Module, path: str, known: dict[Name, Any]) -> Name:
    if path.startswith("="):
        return cast("Name", path[1:])
    # some classes keep a function here (transformers' ACT2FN gives modules)
    function = module
    for part in path.split("."):
        function = getattr(function, part)
    name = name_of(function, known)
    if name is None:
        raise Refused(f"{path} is {function}: the op knows {', '.join(known)}")
    return name
