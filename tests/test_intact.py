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

from seblock_cuda import (
    EffectiveSE,
    SEBlock,
    SEResidual,
    SqueezeExcitation,
    convert_se_modules,
    revert_se_modules,
)
from seblock_cuda.fused import FusedSE
from seblock_cuda.plain import PlainEffectiveSE, PlainSEResidual, PlainSqueezeExcitation
from seblock_cuda.reference import PlainSEBlock
from tests.models import Block, C, Convolutions, SELayer, check_same, results

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*(deprecated|migrate)"),
]


class Shortcut(nn.Module):
    """Gives SEResidual its second input."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.se = kind(C, 1 / 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.se(x, x.flip(0))


class LeakyLayer(SELayer):
    def __init__(self) -> None:
        super().__init__(bias=True)
        self.fc[1] = nn.LeakyReLU()


class ReLUBlock(Block):
    def __init__(self) -> None:
        super().__init__(C)
        self.drop = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.drop(self.body(x)) + self.shortcut(x))


# name -> (plain, fused), with the same keys; None: the plain one, converted
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module] | None]] = {
    "SEBlock": (lambda: PlainSEBlock(C, 1 / 4), lambda: SEBlock(C, 1 / 4)),
    "SEResidual": (lambda: Shortcut(PlainSEResidual), lambda: Shortcut(SEResidual)),
    "SqueezeExcitation": (
        lambda: PlainSqueezeExcitation(C, 3, nn.SiLU),
        lambda: SqueezeExcitation(C, 3, nn.SiLU),
    ),
    "EffectiveSE": (lambda: PlainEffectiveSE(C), lambda: EffectiveSE(C)),
    "converted Linear": (LeakyLayer, None),
    "converted Conv2d": (Convolutions, None),
    "folded tail": (ReLUBlock, None),
}


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """The plain and the fused module of the same weights."""
    make_plain, make_fused = LAYERS[name]
    torch.manual_seed(3)
    plain = nn.Sequential(make_plain())
    if make_fused is None:
        fused = copy.deepcopy(plain)
        report = convert_se_modules(fused, fuse_residual=True)
        assert len(report.converted) == 1
        assert len(report.having("tail fused")) == (name == "folded tail")
    else:
        fused = nn.Sequential(make_fused())
        fused.load_state_dict(plain.state_dict())
    return plain, fused


def se_of(model: nn.Module) -> nn.Module:
    """The SE layer, or the plain one at its place."""
    return model[0].se if hasattr(model[0], "se") else model[0]


def projection(model: nn.Module) -> tuple[nn.Module, str]:
    """What holds the layer's first projection, and its name there."""
    for holder in se_of(model).modules():
        for name, child in holder.named_children():
            if isinstance(child, (nn.Conv2d, nn.Linear)):
                return holder, name
    raise AssertionError


def first(model: nn.Module) -> Any:
    holder, name = projection(model)
    return getattr(holder, name)


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


@pytest.mark.parametrize("name", LAYERS)
def test_unchanged_layers_run_through_the_op(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a warning; what does not change the numbers is no change."""
    _, fused = pair(name)
    fused[0].register_forward_hook(lambda *_: None)
    first(fused).weight = nn.Parameter(first(fused).weight.detach() + 1)
    for module in fused.modules():
        module.unrelated = "attribute"
    monkeypatch.setattr(type(first(fused)), "forward", None)  # a projection must not be called
    monkeypatch.setattr(nn.ReLU, "forward", None)
    if name == "folded tail":
        fused[0].conv = nn.Identity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused(torch.randn(3, C, 5, 4)).sum().backward()
        convert_se_modules(fused, fuse_residual=True)
    assert isinstance(se_of(fused), FusedSE)


@pytest.mark.parametrize("name", LAYERS)
def test_a_change_that_is_taken_back(name: str) -> None:
    plain, fused = pair(name)
    x = torch.randn(3, C, 5, 4)
    handle = first(fused).register_forward_hook(lambda _, x, y: 2 * y)
    with pytest.warns(UserWarning, match="has hooks"):
        assert not torch.allclose(fused(x), plain(x))
    handle.remove()
    reading = se_of(fused)._reading
    assert reading.states(se_of(fused)) is not None and reading.reason(se_of(fused)) is None
    check_same(results(fused, x), results(plain, x), 1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_hooks_for_all_modules(name: str) -> None:
    """They see the children, as in the plain model; nobody changed the layer, nobody is warned."""
    plain, fused = pair(name)
    x = torch.randn(3, C, 5, 4)
    seen: list[list[str]] = []
    for model in (plain, fused):
        seen.append([])
        hook = nn.modules.module.register_module_forward_hook(
            lambda module, *_: seen[-1].append(type(module).__name__.removeprefix("Plain"))
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(x)
        hook.remove()
    assert seen[0] == seen[1] and len(seen[0]) > 2


def test_compiled_after_a_change() -> None:
    """A compiled layer is compiled anew, without a break in the graph."""
    plain, fused = pair("converted Linear")
    x = torch.randn(3, C, 5, 4)
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), plain(x), atol=1e-6)
    for model in (plain, fused):
        model[0].fc[1] = nn.Tanh()
    assert torch.allclose(compiled(x), plain(x), atol=1e-6)
    for model in (plain, fused):
        parametrizations.weight_norm(model[0].fc[0])
    assert torch.allclose(compiled(x), plain(x), atol=1e-6)


def test_a_change_before_reverting() -> None:
    plain, fused = pair("converted Linear")
    for model in (plain, fused):
        torch.manual_seed(1)
        nn.utils.spectral_norm(model[0].fc[0])
    assert revert_se_modules(fused) == 1 and type(fused[0]) is LeakyLayer
    x = torch.randn(3, C, 5, 4)
    check_same(results(fused, x), results(plain, x), 0.0)
