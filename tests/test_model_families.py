"""timm's own families of tests, and torchvision's, with every SE layer converted, tails folded.

Forward and backward, features, TorchScript, torch.fx forward and backward, fx and then TorchScript.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seblock_cuda import convert_se_modules
from seblock_cuda.fused import FusedSE
from tests.models import check_same, results

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
extraction = pytest.importorskip("torchvision.models.feature_extraction")

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*(deprecated|migrate|not actually set)"),
]

# (library, name, folded tails): of each kind of SE network a small one
MODELS = [
    ("timm", "lcnet_050", 0),
    ("timm", "tinynet_e", 0),
    ("timm", "mobilenetv3_small_050", 0),
    ("timm", "semnasnet_050", 0),
    ("timm", "legacy_seresnet18", 8),
    ("timm", "seresnet18", 8),
    ("timm", "regnety_002", 0),
    ("timm", "ese_vovnet19b_dw", 0),
    ("timm", "ghostnet_050", 0),
    ("torchvision", "mobilenet_v3_small", 0),
    ("torchvision", "efficientnet_b0", 0),
    ("torchvision", "regnet_y_400mf", 0),
]
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()


@functools.cache
def pair(library: str, name: str, tails: int) -> tuple[nn.Module, nn.Module]:
    """The plain model and the converted one, in float64."""
    torch.manual_seed(0)
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    plain = make(name, num_classes=5).double().eval()
    fused = copy.deepcopy(plain)
    report = convert_se_modules(fused, fuse_residual=True)
    assert report.converted and not report.left
    assert len(report.having("tail fused")) == tails
    return plain, fused


@pytest.fixture(params=MODELS, ids=lambda model: model[1])
def models(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    return pair(*request.param)


def same(actual: Any, expected: Any) -> None:
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9)


def run(scripted: Any) -> Any:
    """One forward, without the time to optimise for many."""
    with torch.no_grad(), torch.jit.optimized_execution(False):
        return scripted(X)


def test_features_and_intermediates(models: tuple[nn.Module, nn.Module]) -> None:
    """The lists of features; what hooks on layers and blocks see."""
    plain, fused = models
    if hasattr(plain, "forward_intermediates"):
        same(*(model.forward_intermediates(X, intermediates_only=True) for model in models[::-1]))
    paths = [name for name, module in fused.named_modules() if isinstance(module, FusedSE)]
    seen: list[list[Tensor]] = []
    handles = []
    for model in models:
        seen.append([])
        for path in paths:
            block = model.get_submodule(path.rpartition(".")[0])
            hook = block.register_forward_hook(
                lambda _, x, y, seen=seen[-1]: seen.extend([x[0].clone(), y.clone()])
            )
            handles.append(hook)
        model(X)
    for handle in handles:
        handle.remove()
    assert len(seen[0]) == 2 * len(paths)
    same(*seen[::-1])


def test_script(models: tuple[nn.Module, nn.Module]) -> None:
    plain, fused = models
    same([run(torch.jit.script(fused))], [plain(X)])


def test_fx_forward_backward_and_script(models: tuple[nn.Module, nn.Module]) -> None:
    plain, fused = models
    _, nodes = extraction.get_graph_node_names(fused)
    extractor = extraction.create_feature_extractor(fused, {nodes[-1]: "y"})
    actual = results(extractor, X, lambda model, x: model(x)["y"])
    check_same(actual, results(plain, X), 1e-6)
    same([run(torch.jit.script(extractor))["y"]], [plain(X)])


@pytest.mark.parametrize("name", ["legacy_seresnet18", "mobilenetv3_small_050"])
def test_a_list_of_features(name: str) -> None:
    torch.manual_seed(0)
    plain = timm.create_model(name, features_only=True).double().eval()
    fused = copy.deepcopy(plain)
    assert convert_se_modules(fused, fuse_residual=True).converted
    same(fused(X), plain(X))
    same(run(torch.jit.script(fused)), plain(X))
