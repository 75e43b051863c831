"""What the tests of conversions share: pasted modules, and how two models are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seblock_cuda.reference import PlainSEBlock
from tests import cases

C, R = 12, 3


class SELayer(nn.Module):
    """The commonest copy-paste."""

    def __init__(self, channel: int = 12, reduction: int = 4, bias: bool = False) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channel, channel // reduction, bias=bias),
            nn.ReLU(inplace=True),
            nn.Linear(channel // reduction, channel, bias=bias),
            nn.Sigmoid(),
        )

    def gate(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        return self.fc(self.avg_pool(x).view(b, c)).view(b, c, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x).expand_as(x)


class Block(nn.Module):
    """The SE-ResNet block that people paste."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.se = PlainSEBlock(channels, 1 / 4)
        self.downsample: nn.Module | None = None

    def body(self, x: Tensor) -> Tensor:
        return self.se(self.bn(self.conv(x)))

    def shortcut(self, x: Tensor) -> Tensor:
        return x if self.downsample is None else self.downsample(x)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        out += self.shortcut(x)
        return self.relu(out)


def results(
    model: nn.Module, x: Tensor, run: Callable[[nn.Module, Tensor], Tensor] = lambda m, x: m(x)
) -> dict[str, Tensor]:
    """Output and all gradients."""
    model.zero_grad()
    x = x.detach().requires_grad_()
    y = run(model, x)
    y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y))
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, **gradients}


def check_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        error = cases.rms(actual[name] - value)
        assert error <= tolerance * cases.rms(value) + 1e-12, (name, error, cases.rms(value))


def identities(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Names and identity of all state, in order."""
    yield from ((name, id(tensor)) for name, tensor in model.named_parameters())
    yield from ((name, id(tensor)) for name, tensor in model.named_buffers())
    yield from ((key, 0) for key in model.state_dict())


def types(model: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in model.named_modules()]


class Convolutions(nn.Module):
    """Two 1x1 convolutions, declared in the wrong order, under names that say nothing."""

    kind: type[nn.Module] = nn.Conv2d

    def __init__(self) -> None:
        super().__init__()
        self.second = self.kind(R, C, 1)
        self.first = self.kind(C, R, 1)

    def gate(self, x: Tensor) -> Tensor:
        pooled = x.mean(dim=(2, 3), keepdim=True)
        return torch.sigmoid(self.second(F.silu(self.first(pooled))))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x) * x


class MaxPool(SELayer):
    def gate(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        return self.fc(x.mean((2, 3)) + x.amax((2, 3))).view(b, c, 1, 1)
