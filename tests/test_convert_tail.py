"""fuse_residual: relu(se(x) + shortcut) at the end of residual blocks, folded into the op."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seblock_cuda import convert_se_modules, revert_se_modules, use_fused_se
from seblock_cuda.convert.tail import FusedTail
from seblock_cuda.reference import PlainSEBlock
from tests.models import Block, check_same, identities, results, types


class Functional(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.body(x))


class WithIdentity(Block):
    """The identity that stands where a drop path would be."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_path = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop_path(self.body(x)).add(x).relu()


class InSequential(Block):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(self.conv, self.bn, self.se)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layers(x) + x)


@pytest.mark.parametrize("block", [Block, Functional, WithIdentity, InSequential])
def test_folded(block: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(block(), block())
    x = torch.randn(3, 8, 6, 5)
    before, kinds, expected = list(identities(model)), types(model), results(model, x)
    report = convert_se_modules(model, fuse_residual=True)
    assert [e.action for e in report] == ["converted"] * 2 + ["tail fused"] * 2, report
    assert all(e.difference < 1e-9 for e in report)
    assert isinstance(model[0], FusedTail) and list(identities(model)) == before
    check_same(results(model, x), expected, 1e-5)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        check_same(results(copied, x), expected, 1e-5)
    with use_fused_se(False):
        check_same(results(model, x), expected, 1e-5)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    check_same(results(model, x, lambda _, x: compiled(x)), expected, 1e-5)
    assert revert_se_modules(model) == 2
    assert types(model) == kinds and list(identities(model)) == before


def test_tails_can_be_folded_later() -> None:
    model = nn.Sequential(Block(), Block())
    assert not convert_se_modules(model).having("tail fused")
    assert [e.action for e in convert_se_modules(model, fuse_residual=True)] == ["tail fused"] * 2
    assert len(convert_se_modules(model, fuse_residual=True)) == 0


@pytest.mark.parametrize("block", [Block, Functional])
def test_branches_of_two_dtypes(block: Callable[[], nn.Module]) -> None:
    """Under autocast a block's input may be float32 while its branch is bfloat16."""
    torch.manual_seed(0)
    model = nn.Sequential(block())
    x = torch.randn(2, 8, 6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        convert_se_modules(model, fuse_residual=True)
        y = model(x)
    assert y.dtype == expected.dtype
    assert torch.allclose(y, expected, atol=2e-2)


class NoReLU(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x


class NormAfter(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.body(x)) + x)


class UsedTwice(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return F.relu(y + x) + y


class ShortcutInPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        x += self.body(x)
        return F.relu(x)


class Scaled(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.add(x, self.body(x), alpha=2))


class Training(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + (x if self.training else 2 * x))


class SizeDependent(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[2] > 4 else x


class Broadcast(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + x.mean((2, 3), keepdim=True))


KEPT = {
    NoReLU: "no ReLU follows",
    NormAfter: "BatchNorm2d (bn) sits between",
    UsedTwice: "used more than once",
    ShortcutInPlace: "in place",
    Scaled: "not that of two tensors",
    Training: "training",
    SizeDependent: "cannot be read",
}


@pytest.mark.parametrize("block", KEPT)
def test_kept(block: type[nn.Module]) -> None:
    model = nn.Sequential(block())
    converted, tail = convert_se_modules(model, fuse_residual=True)
    assert converted.action == "converted" and type(model[0]) is block
    assert tail.action == "tail kept" and KEPT[block] in tail.reason, tail


def test_a_shortcut_that_is_broadcast_is_added_as_before() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Broadcast())
    x = torch.randn(2, 8, 6, 5)
    expected = results(model, x)
    convert_se_modules(model, fuse_residual=True)
    check_same(results(model, x), expected, 1e-5)


def test_a_layer_with_a_hook_keeps_its_tail() -> None:
    """The hook sees the result of SE; a hook on the block sees that of the block."""
    model = nn.Sequential(Block(), Block())
    for module in (model[0].se, model[1]):
        module.register_forward_hook(lambda *_: None)
    entries = list(convert_se_modules(model, fuse_residual=True))[2:]
    assert [entry.action for entry in entries] == ["tail kept", "tail fused"]
    assert entries[0].reason == "se has hooks"


@pytest.mark.parametrize(
    "library, name, fused, kept, reason",
    [
        ("timm", "BasicBlock", 4, 0, ""),
        ("timm", "Bottleneck", 4, 0, ""),
        ("timm", "legacy_seresnet18", 8, 0, ""),
        ("torchvision", "regnet_y_400mf", 0, 16, "sits between SE and the add"),
        ("timm", "mobilenetv3_small_100", 0, 9, "sits between SE and the add"),
    ],
)
def test_models(library: str, name: str, fused: int, kept: int, reason: str) -> None:
    resnet = pytest.importorskip("timm.models.resnet")
    from tests.test_convert_models import audible, make

    torch.manual_seed(0)
    if block := getattr(resnet, name, None):
        se = {"attn_layer": "se"}
        model = audible(resnet.ResNet(block, (1, 1, 1, 1), num_classes=10, block_args=se))
    else:
        model = make(library, name)
    model.double()
    x = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    before, kinds, expected = list(identities(model)), types(model), results(model, x)
    report = convert_se_modules(model, fuse_residual=True)
    assert (len(report.having("tail fused")), len(report.having("tail kept"))) == (fused, kept)
    assert all(reason in entry.reason for entry in report.having("tail kept")), report
    assert list(identities(model)) == before
    check_same(results(model, x), expected, 1e-5)
    revert_se_modules(model)
    assert types(model) == kinds


def test_torchvision_with_a_plain_tail() -> None:
    """torchvision's ResNet block with SE put before its add, as people do by subclassing."""
    torchvision = pytest.importorskip("torchvision")

    class SEBasicBlock(torchvision.models.resnet.BasicBlock):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[arg-type]
            self.bn2 = nn.Sequential(self.bn2, PlainSEBlock(self.conv2.out_channels, 1 / 16))

    torch.manual_seed(0)
    model = torchvision.models.resnet.ResNet(SEBasicBlock, [1, 1, 1, 1], num_classes=10)
    model.double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = results(model, x)
    report = convert_se_modules(model, fuse_residual=True)
    assert len(report.having("tail fused")) == 4, report
    check_same(results(model, x), expected, 1e-5)
