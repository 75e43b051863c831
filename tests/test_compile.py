"""The ops under torch.library.opcheck, torch.compile and torch.export."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from seblock_cuda import SEBlock, squeeze_excitation
from tests import cases


def samples(device: str) -> list[tuple[Tensor | None, ...]]:
    given = []
    for dtype, layout, bias in (
        (torch.float32, "nchw", True),
        (torch.bfloat16, "nhwc", False),
        (torch.float16, "nchw", True),
        (torch.float64, "nhwc", True),
    ):
        problem = cases.make_problem(
            (3, 8, (5, 3), 2), dtype, layout, bias=bias, device=device, weight_dtype=torch.float32
        )
        given.append((problem.x, *problem.parameters))
    strided = cases.make_problem((3, 16, (5, 6), 2), device=device)
    given.append(
        (
            strided.x[:, ::2, :, ::2],
            strided.reduce_weight[:, ::2],
            strided.expand_weight[::2],
            None,
            None,
        )
    )
    return given


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "training"])
def test_opcheck_forward(index: int, requires_grad: bool, device: str) -> None:
    given = [
        tensor if tensor is None else tensor.detach().requires_grad_(requires_grad)
        for tensor in samples(device)[index]
    ]
    torch.library.opcheck(torch.ops.seblock_cuda.se_forward, (*given, None, 1, 0, 0))


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "training"])
def test_opcheck_backward(index: int, requires_grad: bool, device: str) -> None:
    x, *parameters = samples(device)[index]
    y, *saved = torch.ops.seblock_cuda.se_forward(x, *parameters, None, 1, 0, 0)
    given = [
        tensor.detach().requires_grad_(requires_grad)
        for tensor in (torch.randn_like(y), x, *parameters[:2])
        if tensor is not None
    ]
    torch.library.opcheck(
        torch.ops.seblock_cuda.se_backward, (*given, *saved, True, False, 1, 0, 0)
    )


class Network(nn.Module):
    """Something around the layer for the compiler to fuse with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.se = SEBlock(16, 1 / 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.se(torch.relu(self.conv(x)) * 2)).mean()


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_training_step(backend: str, layout: str, device: str) -> None:
    torch.manual_seed(0)
    model = Network().to(device)
    x = cases.in_layout(torch.randn(4, 3, 9, 9, device=device), layout)

    def step(function: object) -> list[Tensor]:
        model.zero_grad()
        loss = function(x)  # type: ignore[operator]
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for actual, expected in zip(step(compiled), step(model)):
        assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_compiled_with_a_dynamic_batch(device: str) -> None:
    torch._dynamo.reset()
    model = Network().to(device)
    graphs = 0

    def counting(graph: torch.fx.GraphModule, _: object) -> object:
        nonlocal graphs
        graphs += 1
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counting)
    for n in (2, 5, 9):
        x = torch.randn(n, 3, 9, 9, device=device)
        assert torch.allclose(compiled(x), model(x), rtol=1e-5, atol=1e-6)
    assert graphs == 1


def test_bad_arguments_under_compile(device: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(squeeze_excitation, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="reduce_weight must be"):
        compiled(
            torch.randn(2, 8, 3, 3, device=device),
            torch.randn(2, 4, device=device),
            torch.randn(8, 2, device=device),
        )


def test_export(device: str) -> None:
    model = Network().to(device).eval()
    x = torch.randn(4, 3, 9, 9, device=device)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch}})
    for n in (4, 7):
        x = torch.randn(n, 3, 9, 9, device=device)
        assert torch.allclose(program.module()(x), model(x), rtol=1e-5, atol=1e-6)
