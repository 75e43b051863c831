"""When a fused layer counts as changed, and when not: what runs then, and who is warned."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from seblock_cuda import convert_se_modules, revert_se_modules
from seblock_cuda.fused import FusedSE
from tests.fused_layers import LAYERS, LeakyLayer, first, pair, se_of
from tests.models import C, check_same, results

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*(deprecated|migrate)"),
]


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
