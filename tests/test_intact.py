"""A layer whose children are no longer what was read computes what those children compute.

Every kind of fused layer under every kind of change, against the plain layer under the same change.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from tests.fused_layers import LAYERS, first, pair, projection
from tests.models import C, check_same, results

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*(deprecated|migrate)"),
]


class LowRank(nn.Module):
    """An adapter that stands in a layer's place, as those of peft do."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.scale = base, nn.Parameter(torch.full((1,), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) * self.scale

    @property
    def weight(self) -> Tensor:
        return self.base.weight


class Wrapped(Tensor):
    """A weight that is more than a tensor, as those of quantisation libraries are."""


def adapter(model: nn.Module) -> None:
    holder, name = projection(model)
    setattr(holder, name, LowRank(getattr(holder, name)))


def subclass_of_tensor(model: nn.Module) -> None:
    layer = first(model)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Wrapped))


def own_forward(model: nn.Module) -> None:
    layer = first(model)
    before = layer.forward
    layer.forward = lambda x: 2 * before(x)


def quantised(model: nn.Module) -> None:
    holder, name = projection(model)
    setattr(holder, name, torch.ao.nn.qat.Conv2d.from_float(_with_qconfig(getattr(holder, name))))


def _with_qconfig(layer: Any) -> Any:
    layer.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    return layer


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "spectral_norm": lambda m: nn.utils.spectral_norm(first(m)),
    "weight_norm": lambda m: nn.utils.weight_norm(first(m)),
    "parametrization": lambda m: parametrizations.weight_norm(first(m)),
    "prune": lambda m: prune.l1_unstructured(first(m), "weight", 0.5),
    "adapter": adapter,
    "subclass of Tensor": subclass_of_tensor,
    "own forward": own_forward,
    "hook": lambda m: first(m).register_forward_hook(lambda _, x, y: 2 * y),
    "pre-hook": lambda m: first(m).register_forward_pre_hook(lambda _, x: (2 * x[0],)),
    "backward hook": lambda m: first(m).register_full_backward_hook(lambda _, dx, dy: (2 * dx[0],)),
    "backward pre-hook": lambda m: first(m).register_full_backward_pre_hook(
        lambda _, dy: (2 * dy[0],)
    ),
}


def check_changed(plain: nn.Module, fused: nn.Module, child: str, *, copies: bool = True) -> None:
    """Same numbers, one warning that names the child; also in a copy, which has its own."""
    x = torch.randn(3, C, 5, 4)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if copies:
            check_same(results(copy.deepcopy(fused), x), results(copy.deepcopy(plain), x), 1e-6)
        check_same(results(fused, x), results(plain, x), 1e-6)
        fused(x)
    said = [str(w.message) for w in seen if "runs as plain PyTorch" in str(w.message)]
    assert len(said) == 1 + copies and all(child in message for message in said), said


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", LAYERS)
def test_changed_projection(name: str, change: str) -> None:
    plain, fused = pair(name)
    child = projection(fused)[1]
    for model in (plain, fused):
        torch.manual_seed(5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            CHANGES[change](model)
    if change == "subclass of Tensor":  # whose gradients are of the subclass too
        check_equal(plain, fused)
    else:  # torch cannot copy what the others keep
        check_changed(plain, fused, child, copies=change not in ("weight_norm", "prune"))


def check_equal(plain: nn.Module, fused: nn.Module) -> None:
    x = torch.randn(3, C, 5, 4)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        y = fused(x)
    assert sum("runs as plain PyTorch" in str(w.message) for w in seen) == 1
    assert torch.allclose(y.as_subclass(Tensor), plain(x).as_subclass(Tensor), atol=1e-6)


@pytest.mark.parametrize("name", ["SEBlock", "SqueezeExcitation", "EffectiveSE"])
def test_quantisation_aware_training(name: str) -> None:
    plain, fused = pair(name)
    for model in (plain, fused):
        quantised(model)
        model.eval()
    check_equal(plain, fused)


@pytest.mark.parametrize(
    "name, activation",
    [
        ("SqueezeExcitation", "activation"),
        ("SqueezeExcitation", "scale_activation"),
        ("converted Linear", "fc.1"),
        ("converted Linear", "fc.3"),
        ("folded tail", "relu"),
    ],
)
@pytest.mark.parametrize("change", ["replaced", "hook", "backward hook"])
def test_changed_activation(name: str, activation: str, change: str) -> None:
    plain, fused = pair(name)
    for model in (plain, fused):
        holder = model[0].get_submodule(activation.rpartition(".")[0])
        child = activation.rpartition(".")[2]
        if change == "replaced":
            setattr(holder, child, nn.Tanh())
        elif change == "hook":
            getattr(holder, child).register_forward_hook(lambda _, x, y: y / 2)
        else:  # guided backprop
            getattr(holder, child).inplace = False
            getattr(holder, child).register_full_backward_hook(lambda _, dx, dy: (dx[0].relu(),))
    check_changed(plain, fused, child)


def test_changed_value_of_an_activation() -> None:
    plain, fused = pair("converted Linear")
    for model in (plain, fused):
        model[0].fc[1].negative_slope = 0.5
    check_changed(plain, fused, "fc.1.negative_slope is 0.5, and was 0.01")


def test_a_module_more_in_a_container() -> None:
    plain, fused = pair("converted Linear")
    for model in (plain, fused):
        model[0].fc.append(nn.Tanh())
    check_changed(plain, fused, "fc holds 5 modules, and held 4")


def test_another_gate_of_effective_se() -> None:
    plain, fused = pair("EffectiveSE")
    for model in (plain, fused):
        model[0].gate = "relu"
    check_changed(plain, fused, "gate is 'relu', and was 'hardsigmoid'")


TAIL_CHANGES: dict[str, Callable[[Any], Any]] = {
    "drop": lambda block: setattr(block, "drop", nn.Hardtanh(-0.1, 0.1)),
    "relu": lambda block: setattr(block, "relu", nn.LeakyReLU(0.2)),
    "downsample": lambda block: setattr(block, "downsample", nn.Conv2d(C, C, 1)),
    "se has hooks": lambda block: block.se.register_forward_hook(lambda _, x, y: 2 * y),
}


@pytest.mark.parametrize("change", TAIL_CHANGES)
def test_changed_tail(change: str) -> None:
    plain, fused = pair("folded tail")
    for model in (plain, fused):
        torch.manual_seed(5)
        TAIL_CHANGES[change](model[0])
    check_changed(plain, fused, change)


def test_what_is_called_all_the_same_may_change() -> None:
    """The tail does not depend on what comes before it."""
    plain, fused = pair("folded tail")
    for model in (plain, fused):
        model[0].conv.register_forward_hook(lambda _, x, y: 2 * y)
        model[0].bn = nn.Identity()
    x = torch.randn(3, C, 5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_same(results(fused, x), results(plain, x), 1e-5)
