"""SE that is no module has its row in the report: in a block's forward, or of bare parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seblock_cuda import convert_se_modules
from tests.models import Block, SELayer, types

C, R = 16, 4
BLOCK, PARAMETERS = "into this block's forward", "bare parameters"


class BasicBlock(nn.Module):
    """As in the most copied SENet for CIFAR."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(C, C, 3, padding=1)
        self.fc1, self.fc2 = nn.Conv2d(C, R, 1), nn.Conv2d(R, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        w = F.avg_pool2d(out, out.size(2))
        w = torch.sigmoid(self.fc2(F.relu(self.fc1(w))))
        return F.relu(out * w + x)


class Squeeze(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.residual = nn.Conv2d(C, C, 3, padding=1)
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.excitation = nn.Sequential(nn.Linear(C, R), nn.ReLU(), nn.Linear(R, C), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        r = self.residual(x)
        gate = self.excitation(self.squeeze(r).flatten(1))
        return F.relu(r * gate[:, :, None, None] + x)


class InAHelper(BasicBlock):
    def attend(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.attend(self.conv1(x)) + x)


class ThenUnreadable(BasicBlock):
    """As in MBConv blocks: after SE something that no trace can follow."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        keep = torch.rand([x.shape[0], 1, 1, 1])
        return out * keep if out.sum() > 0 else out


class Effective(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * F.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class OfParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(R, C)), nn.Parameter(torch.randn(C, R))

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(x.mean((2, 3)) @ self.w1.t()) @ self.w2.t()
        return x * torch.sigmoid(z)[:, :, None, None]


class OfParametersToo(OfParameters):
    def forward(self, x: Tensor) -> Tensor:
        z = F.linear(F.relu(F.linear(x.mean((2, 3)), self.w1)), self.w2)
        return torch.mul(torch.sigmoid(z).view(-1, C, 1, 1), x)


@pytest.mark.parametrize(
    "kind, reason",
    [
        (BasicBlock, BLOCK),
        (Squeeze, BLOCK),
        (InAHelper, BLOCK),
        (ThenUnreadable, BLOCK),
        (Effective, BLOCK),
        (OfParameters, PARAMETERS),
        (OfParametersToo, PARAMETERS),
    ],
)
def test_reported(kind: type[nn.Module], reason: str) -> None:
    model = nn.Sequential(nn.Identity(), nn.ModuleDict({"block": kind()}), SELayer())
    kinds = types(model[1])
    report = convert_se_modules(model)
    assert [entry.path for entry in report.converted] == ["2"]
    (left,) = report.left
    assert left.path == "1.block" and reason in left.reason
    assert types(model[1]) == kinds


class Classifier(nn.Module):
    """A pooling and two projections, but no product."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, C, 3)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, R))
        self.last, self.scale = nn.Linear(R, C), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.head(self.body(x))) * self.scale


class Bottleneck(nn.Module):
    """Two projections and a product, but no pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(C, R, 1), nn.Conv2d(R, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(x))))


class SplitAttention(BasicBlock):
    """A softmax over branches is another layer."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        z = self.fc2(F.relu(self.fc1(out.mean((2, 3), keepdim=True))))
        return out * F.softmax(z, 1)


class Modulation(nn.Module):
    """As in FocalNet: what is pooled is a part of what modulates."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.h = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        context = x + x.mean((2, 3), keepdim=True) * 0.5
        return self.query(x) * self.h(context)


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.again = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - x.mean((2, 3), keepdim=True)) * x.std((2, 3), keepdim=True)
        return self.again(self.conv(x))


def with_a_layer() -> nn.Module:
    """SE as a module: the block around it is no second row."""
    return Block(C)


@pytest.mark.parametrize("make", [Classifier, Bottleneck, SplitAttention, Modulation, Normalised])
def test_not_reported(make: Callable[[], nn.Module]) -> None:
    report = convert_se_modules(nn.Sequential(make(), with_a_layer()))
    assert [entry.path for entry in report] == ["1.se"], report


def test_a_look_leaves_no_trace() -> None:
    class Counts(BasicBlock):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))
            self.last = None

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = self.conv1(x)
            return super().forward(x)

    block = Counts()
    before = dict(vars(block))
    (left,) = convert_se_modules(nn.Sequential(block))
    assert left.action == "left" and dict(vars(block)) == before and block.calls == 0
