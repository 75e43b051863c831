"""SEBlock is the plain block that people paste: same weights, same checkpoints, same numbers."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from seblock_cuda import SEBlock
from seblock_cuda.reference import PlainSEBlock
from tests import cases


def pair(
    channels: int = 48,
    ration: float = 1 / 8,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[SEBlock, PlainSEBlock]:
    """Both blocks, made under one seed."""
    torch.manual_seed(3)
    fused = SEBlock(channels, ration)
    torch.manual_seed(3)
    plain = PlainSEBlock(channels, ration)
    return fused.to(device, dtype), plain.to(device, dtype)


def step(block: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output and all gradients of one training step."""
    block.zero_grad()
    x = x.detach().requires_grad_()
    y = block(x)
    y.backward(dy)
    gradients = {f"d{name}": p.grad.clone() for name, p in block.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, **gradients}


def test_same_initial_weights_under_one_seed() -> None:
    fused, plain = pair()
    assert list(fused.state_dict()) == ["reduce.weight", "expand.weight"]
    for name, weight in plain.state_dict().items():
        assert torch.equal(fused.state_dict()[name], weight)


@pytest.mark.parametrize("channels, ration", [(64, 1 / 16), (17, 0.3), (10, 1.0), (8, 1 / 8)])
def test_width_of_the_squeeze(channels: int, ration: float) -> None:
    fused, plain = pair(channels, ration)
    assert (
        fused.reduce.weight.shape
        == plain.reduce.weight.shape
        == (
            int(channels * ration),
            channels,
            1,
            1,
        )
    )


def test_checkpoints_move_in_both_directions() -> None:
    fused, plain = pair()
    other = PlainSEBlock(48, 1 / 8)
    fused.load_state_dict(other.state_dict())
    assert torch.equal(fused.expand.weight, other.expand.weight)
    plain.load_state_dict(fused.state_dict())
    assert torch.equal(plain.reduce.weight, other.reduce.weight)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_linear_and_conv1d_checkpoints_load(dimensions: int) -> None:
    fused, plain = pair()
    model = nn.Sequential(fused)
    flat = {
        f"0.{name}": weight.reshape(weight.shape[:dimensions]) + 1
        for name, weight in plain.state_dict().items()
    }
    before = {name: weight.clone() for name, weight in flat.items()}
    model.load_state_dict(flat)
    assert torch.equal(fused.reduce.weight, plain.reduce.weight + 1)
    for name, weight in flat.items():  # the caller's dict is as it was
        assert weight.shape == before[name].shape


def test_a_checkpoint_of_another_width_is_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        SEBlock(48, 1 / 8).load_state_dict(SEBlock(48, 1 / 4).state_dict())


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_output_and_gradients(dtype: torch.dtype, layout: str, device: str) -> None:
    fused, plain = pair(dtype=dtype, device=device)
    _, truth = pair(dtype=torch.float64, device=device)
    truth.load_state_dict({name: w.double() for name, w in plain.state_dict().items()})
    problem = cases.make_problem((6, 48, (13, 10), 6), dtype, layout, device=device)
    actual = step(fused, problem.x, problem.dy)
    baseline = step(plain, problem.x, problem.dy)
    expected = step(truth, problem.x.double(), problem.dy.double())
    for name, value in actual.items():
        assert value.shape == baseline[name].shape and value.dtype == baseline[name].dtype
        error = cases.rms(value.double() - expected[name])
        plain_error = cases.rms(baseline[name].double() - expected[name])
        slack = {torch.float64: 1e-13, torch.float32: 2**-22}.get(dtype, 0.0)
        factor = 2 if dtype == torch.float32 else 1
        assert error <= factor * plain_error + slack * cases.rms(expected[name]), name
    assert actual["y"].stride() == baseline["y"].stride()


def test_inference_mode_and_no_grad() -> None:
    fused, _ = pair()
    x = torch.randn(2, 48, 5, 5)
    expected = fused(x).detach()
    with torch.inference_mode():
        assert torch.equal(fused(x), expected)
    with torch.no_grad():
        y = fused(x)
    assert torch.equal(y, expected) and not y.requires_grad


def test_frozen_weights_and_frozen_input() -> None:
    fused, _ = pair()
    problem = cases.make_problem((2, 48, (5, 5), 6))
    full = step(fused, problem.x, problem.dy)
    fused.requires_grad_(False)
    x = problem.x.clone().requires_grad_()
    fused(x).backward(problem.dy)
    assert torch.equal(x.grad, full["dx"])
    fused.zero_grad()
    fused.requires_grad_(True)
    fused(problem.x).backward(problem.dy)
    assert torch.equal(fused.reduce.weight.grad, full["dreduce.weight"])


def test_copies_and_pickles() -> None:
    fused, _ = pair()
    x = torch.randn(2, 48, 5, 5)
    expected = fused(x)
    assert torch.equal(copy.deepcopy(fused)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(fused))(x), expected)
    buffer = io.BytesIO()
    torch.save(fused.state_dict(), buffer)
    buffer.seek(0)
    loaded = SEBlock(48, 1 / 8)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(loaded(x), expected)


def test_checkpointing_and_hooks() -> None:
    fused, _ = pair()
    problem = cases.make_problem((2, 48, (5, 5), 6))
    expected = step(fused, problem.x, problem.dy)
    fused.zero_grad()
    x = problem.x.clone().requires_grad_()
    checkpoint(fused, x, use_reentrant=False).backward(problem.dy)
    assert torch.equal(x.grad, expected["dx"])

    seen: list[str] = []
    fused.register_forward_hook(lambda *_: seen.append("forward"))
    fused.register_full_backward_hook(lambda *_: seen.append("backward"))
    again = step(fused, problem.x, problem.dy)
    assert seen == ["forward", "backward"]
    assert torch.equal(again["dx"], expected["dx"])


def test_factory_arguments() -> None:
    block = SEBlock(16, 1 / 4, device="meta", dtype=torch.bfloat16)
    assert block.reduce.weight.is_meta and block.expand.weight.dtype == torch.bfloat16
    assert block(torch.empty(2, 16, 4, 4, device="meta", dtype=torch.bfloat16)).shape == (
        2,
        16,
        4,
        4,
    )
