"""Fused layers are called as the plain ones are: by name, without a batch, under autocast."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seblock_cuda import (
    EffectiveSE,
    SEBlock,
    SEResidual,
    SqueezeExcitation,
    convert_se_modules,
    record_gates,
    use_fused_se,
)
from seblock_cuda.plain import PlainEffectiveSE, PlainSEResidual, PlainSqueezeExcitation
from seblock_cuda.reference import PlainSEBlock
from tests.models import Block, Convolutions, SELayer, check_same, results

torchvision = pytest.importorskip("torchvision")

C = 12

# fused -> plain, of the same weights
OWN: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "SEBlock": (lambda: SEBlock(C, 1 / 4), lambda: PlainSEBlock(C, 1 / 4)),
    "SEResidual": (lambda: SEResidual(C, 1 / 4), lambda: PlainSEResidual(C, 1 / 4)),
    "SqueezeExcitation": (
        lambda: SqueezeExcitation(C, 3),
        lambda: PlainSqueezeExcitation(C, 3),
    ),
    "EffectiveSE": (lambda: EffectiveSE(C), lambda: PlainEffectiveSE(C)),
}
CONVERTED: dict[str, Callable[[], nn.Module]] = {
    "Linear": SELayer,
    "Conv2d": Convolutions,
    "torchvision": lambda: torchvision.ops.SqueezeExcitation(C, 3),
    "block": lambda: Block(C),
}


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """The fused and the plain layer."""
    torch.manual_seed(0)
    if name in OWN:
        fused, plain = (make() for make in OWN[name])
        fused.load_state_dict(plain.state_dict())
        return fused, plain
    plain = CONVERTED[name]()
    model = nn.Sequential(copy.deepcopy(plain))
    convert_se_modules(model, fuse_residual=True)
    return model[0], plain


def given(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The layer's inputs."""
    return [torch.randn(shape).to(dtype) for _ in range(1 + (name == "SEResidual"))]


@pytest.mark.parametrize("name", [*OWN, *CONVERTED])
def test_by_name(name: str) -> None:
    fused, plain = pair(name)
    x = given(name, 2, C, 5, 4)
    first = {"SqueezeExcitation": "input", "EffectiveSE": "input", "torchvision": "input"}
    names = [first.get(name, "inputs" if name in OWN else "x"), "shortcut"]
    named = dict(zip(names, x))
    assert torch.allclose(fused(**named), plain(**named), atol=1e-6)
    assert torch.allclose(fused(**dict(reversed(named.items()))), plain(**named), atol=1e-6)
    for call in (lambda: fused(nonsense=x[0]), lambda: fused(), lambda: fused(*x, *x)):
        with pytest.raises(TypeError, match="forward"):
            call()
    with pytest.raises(TypeError, match="multiple values"):
        fused(x[0], **named)
    if name != "block":
        with record_gates(fused) as gates:
            fused(**named)
        assert gates[""][0].shape == (2, C)


@pytest.mark.parametrize("name", [*OWN, "Conv2d", "torchvision"])
def test_without_a_batch(name: str) -> None:
    fused, plain = pair(name)
    if name == "Conv2d":  # its forward takes a batch only
        with pytest.raises(IndexError):
            plain(torch.randn(C, 5, 4))
        with pytest.raises(IndexError):
            fused(torch.randn(C, 5, 4))
        return
    x = given(name, C, 5, 4)
    y = fused(*x)
    assert y.shape == (C, 5, 4) and torch.allclose(y, plain(*x), atol=1e-6)
    assert torch.allclose(fused(*(each[None] for each in x))[0], y, atol=1e-6)
    check_same(
        results(fused, x[0], lambda m, first: m(first, *x[1:])),
        results(plain, x[0], lambda m, first: m(first, *x[1:])),
        1e-5,
    )
    with record_gates(fused) as gates:
        fused(*x)
    assert gates[""][0].shape == (1, C)


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("name", OWN)
def test_other_ranks_of_our_own_layers(name: str, changed: bool) -> None:
    """[N, C, L] and [N, C, D, H, W], which the plain layers do not take; also on their path."""
    fused, plain = pair(name)
    if changed:
        next(fused.children()).register_forward_hook(lambda *_: None)
    for shape in ((2, C, 6), (2, C, 3, 2, 2)):
        x = given(name, *shape)
        expected = plain(*(each.reshape(2, C, -1, 1) for each in x)).reshape(shape)
        assert torch.allclose(fused(*x), expected, atol=1e-6)


@pytest.mark.parametrize("name", OWN)
def test_what_stays_ambiguous_is_refused(name: str) -> None:
    fused, _ = pair(name)
    with pytest.raises(ValueError, match=r"\[12, 12, 5\] may be \[C, H, W\] or \[N, C, L\]"):
        fused(*given(name, C, C, 5))
    with pytest.raises(ValueError, match="1, 2 or 3 spatial dimensions"):
        fused(*given(name, C, 5))


@pytest.mark.parametrize("name", OWN)
def test_what_is_no_tensor_is_refused(name: str) -> None:
    fused, _ = pair(name)
    with pytest.raises(TypeError, match="input must be a Tensor, got list"):
        fused(*[[1.0]] * len(given(name, 1)))


@pytest.mark.parametrize("name", ["torchvision"])
def test_a_converted_layer_says_what_its_class_says(name: str) -> None:
    """Its convolutions are 2-D: three dimensions are an image without a batch."""
    fused, plain = pair(name)
    x = torch.randn(C, C, 5)
    assert torch.equal(fused(x), plain(x))
    with pytest.raises(RuntimeError):
        plain(torch.randn(2, C, 5))
    with pytest.raises(RuntimeError):
        fused(torch.randn(2, C, 5))


DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("name", OWN)
def test_other_ranks_under_autocast(name: str) -> None:
    fused, _ = pair(name)
    fused.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        for shape in ((2, C, 6), (C, 5, 4), (2, C, 3, 2, 2)):
            assert fused(*given(name, *shape)).dtype == torch.float32


@pytest.mark.parametrize("weights", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*OWN, *CONVERTED])
def test_dtypes_under_autocast(name: str, dtype: torch.dtype, weights: torch.dtype) -> None:
    fused, plain = (layer.to(weights).eval() for layer in pair(name))
    x = given(name, 2, C, 5, 4, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = fused(*x), plain(*x)
    assert y.dtype == expected.dtype
    assert torch.allclose(y, expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dtypes", [DTYPES, DTYPES[::-1]])
def test_a_shortcut_of_another_dtype_under_autocast(dtypes: list[torch.dtype]) -> None:
    fused, plain = pair("SEResidual")
    x = [torch.randn(2, C, 5, 4).to(dtype) for dtype in dtypes]
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = fused(*x), plain(*x)
    assert y.dtype == expected.dtype == torch.float32
    assert torch.allclose(y, expected, atol=0.05)
    with pytest.raises(TypeError, match="residual must be"):
        fused(*x)


def test_the_switch_as_a_decorator(monkeypatch: pytest.MonkeyPatch) -> None:
    block = SEBlock(C, 1 / 4)
    x = torch.randn(2, C, 3, 3)
    expected = block(x)

    @use_fused_se(False)
    def plain(x: Tensor, *, scale: int = 1) -> Tensor:
        """Documented."""
        assert not use_fused_se.enabled
        return block(x) * scale

    assert use_fused_se.enabled and plain.__doc__ == "Documented."
    monkeypatch.setattr("seblock_cuda._ops.se_forward", None)
    assert torch.allclose(plain(x, scale=2), 2 * expected, atol=1e-6)
    assert use_fused_se.enabled
    with use_fused_se(False):
        plain(x)
        assert not use_fused_se.enabled

    @use_fused_se(False)
    def fails() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert use_fused_se.enabled
    with pytest.raises(TypeError, match=r"as in @use_fused_se\(False\), got a function"):
        switched: Any = use_fused_se(fails)  # type: ignore[arg-type]
        switched()
    assert use_fused_se.enabled
