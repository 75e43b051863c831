"""Bad input gets the error of the contract: its type, the argument's name, what was expected and
what came.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from seblock_cuda import SEBlock, squeeze_excitation


def arguments(c: int = 64, r: int = 4) -> dict[str, Tensor]:
    return {
        "input": torch.randn(8, c, 6, 6),
        "reduce_weight": torch.randn(r, c),
        "expand_weight": torch.randn(c, r),
        "reduce_bias": torch.randn(r),
        "expand_bias": torch.randn(c),
    }


REFUSED: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    "rank 2": (
        {"input": torch.randn(8, 64)},
        ValueError,
        "input must be [N, C, *spatial] with 1, 2 or 3 spatial dimensions, got [8, 64]",
    ),
    "rank 6": (
        {"input": torch.randn(2, 64, 1, 1, 1, 1)},
        ValueError,
        "input must be [N, C, *spatial] with 1, 2 or 3 spatial dimensions, got [2, 64, 1, 1, 1, 1]",
    ),
    "no channels": (
        {"input": torch.randn(8, 0, 6, 6), "reduce_weight": torch.randn(4, 0)},
        ValueError,
        "input must have at least one channel, got [8, 0, 6, 6]",
    ),
    "empty space": (
        {"input": torch.randn(8, 64, 0, 6)},
        ValueError,
        "input must have no empty spatial dimension, got [8, 64, 0, 6]",
    ),
    "reduce_weight of other channels": (
        {"reduce_weight": torch.randn(4, 32)},
        ValueError,
        "reduce_weight must be [R, 64] to match input [8, 64, 6, 6], got [4, 32]",
    ),
    "reduce_weight of rank 1": (
        {"reduce_weight": torch.randn(64)},
        ValueError,
        "reduce_weight must be [R, 64] to match input [8, 64, 6, 6], got [64]",
    ),
    "reduce_weight of a 3x3 convolution": (
        {"reduce_weight": torch.randn(4, 64, 3, 3)},
        ValueError,
        "reduce_weight must be [R, 64] to match input [8, 64, 6, 6], got [4, 64, 3, 3]",
    ),
    "no reduced channels": (
        {"reduce_weight": torch.randn(0, 64), "expand_weight": torch.randn(64, 0)},
        ValueError,
        "reduce_weight must be [R, 64] with R at least 1, got [0, 64]",
    ),
    "expand_weight not transposed": (
        {"expand_weight": torch.randn(4, 64)},
        ValueError,
        "expand_weight must be [64, 4] to match input [8, 64, 6, 6] "
        "and reduce_weight [4, 64], got [4, 64]",
    ),
    "reduce_bias too long": (
        {"reduce_bias": torch.randn(5)},
        ValueError,
        "reduce_bias must be [4], got [5]",
    ),
    "expand_bias of rank 2": (
        {"expand_bias": torch.randn(64, 1)},
        ValueError,
        "expand_bias must be [64], got [64, 1]",
    ),
    "integer input": (
        {"input": torch.ones(8, 64, 6, 6, dtype=torch.int64)},
        TypeError,
        "input must be one of float32, bfloat16, float16, float64, got int64",
    ),
    "complex input": (
        {"input": torch.ones(8, 64, 6, 6, dtype=torch.complex64)},
        TypeError,
        "input must be one of float32, bfloat16, float16, float64, got complex64",
    ),
    "weights narrower than input": (
        {"reduce_weight": torch.randn(4, 64, dtype=torch.bfloat16)},
        TypeError,
        "reduce_weight must be float32 to match input, got bfloat16",
    ),
    "another narrow dtype": (
        {
            "input": torch.randn(8, 64, 6, 6, dtype=torch.bfloat16),
            "expand_bias": torch.randn(64, dtype=torch.float16),
        },
        TypeError,
        "expand_bias must be bfloat16 or float32 to match input, got float16",
    ),
    "a list": (
        {"input": [1.0, 2.0]},
        TypeError,
        "input must be a Tensor, got list",
    ),
    "no weight": (
        {"expand_weight": None},
        TypeError,
        "expand_weight must be a Tensor, got NoneType",
    ),
    "a number for a bias": (
        {"reduce_bias": 1.0},
        TypeError,
        "reduce_bias must be a Tensor or None, got float",
    ),
    "mixed devices": (
        {"expand_weight": torch.empty(64, 4, device="meta")},
        RuntimeError,
        "expand_weight must be on the device of input, cpu, got meta",
    ),
    "unknown activation": (
        {"activation": "mish"},
        ValueError,
        "activation must be one of relu, silu, gelu, hardswish, leaky_relu, identity, got 'mish'",
    ),
    "unknown gate": (
        {"gate": "tanh"},
        ValueError,
        "gate must be one of sigmoid, hardsigmoid, relu, got 'tanh'",
    ),
    "a residual of another shape": (
        {"residual": torch.randn(8, 64, 6, 5)},
        ValueError,
        "residual must have input's shape [8, 64, 6, 6], got [8, 64, 6, 5]",
    ),
    "a residual to be broadcast": (
        {"residual": torch.randn(8, 64, 1, 1)},
        ValueError,
        "residual must have input's shape [8, 64, 6, 6], got [8, 64, 1, 1]",
    ),
    "a residual of another dtype": (
        {"residual": torch.randn(8, 64, 6, 6).double()},
        TypeError,
        "residual must be float32 to match input, got float64",
    ),
    "a residual that is a number": (
        {"residual": 1.0},
        TypeError,
        "residual must be a Tensor or None, got float",
    ),
    "a residual on another device": (
        {"residual": torch.randn(8, 64, 6, 6, device="meta")},
        RuntimeError,
        "residual must be on the device of input, cpu, got meta",
    ),
    "residual_activation without a residual": (
        {"residual_activation": "relu"},
        ValueError,
        "residual must be given with residual_activation 'relu'",
    ),
    "unknown residual_activation": (
        {"residual": torch.randn(8, 64, 6, 6), "residual_activation": "silu"},
        ValueError,
        "residual_activation must be one of None, relu, got 'silu'",
    ),
}


@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_full_message(case: str, requires_grad: bool) -> None:
    change, error, message = REFUSED[case]
    given = {**arguments(), **change}
    given["reduce_weight"].requires_grad_(requires_grad)  # type: ignore[attr-defined]
    with pytest.raises(error, match="^" + re.escape(message)) as caught:
        squeeze_excitation(**given)  # type: ignore[arg-type]
    assert caught.type is error


@pytest.mark.parametrize("case", REFUSED)
def test_the_op_itself_refuses(case: str) -> None:
    """The op never trusts its caller: the same cases, straight to the dispatcher."""
    change, _, _ = REFUSED[case]
    given = {**arguments(), **change}
    codes = {"activation": {"mish": 99}, "gate": {"tanh": -1}}
    tails = {"relu": 2, "silu": 3}
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        torch.ops.seblock_cuda.se_forward(
            given["input"],
            given["reduce_weight"],
            given["expand_weight"],
            given["reduce_bias"],
            given["expand_bias"],
            given.get("residual"),
            codes["activation"].get(str(given.get("activation")), 0),
            codes["gate"].get(str(given.get("gate")), 0),
            tails.get(str(given.get("residual_activation")), int("residual" in given)),
        )


def test_backward_op_refuses_what_forward_did_not_make() -> None:
    op = torch.ops.seblock_cuda
    given = list(arguments().values())
    x, weights = given[0], given[1:3]
    y, pooled, z1, gate, mask = op.se_forward(*given, x, 0, 0, 2)
    op.se_backward(y, x, *weights, pooled, z1, gate, mask, True, True, 0, 0, 2)
    for bad in (
        (y[:4], x, *weights, pooled, z1, gate, mask),
        (y.double(), x, *weights, pooled, z1, gate, mask),
        (y, x, *weights, pooled[:, :3], z1, gate, mask),
        (y, x, *weights, pooled, z1.double(), gate, mask),
        (y, x, *weights, pooled, z1, gate.t(), mask),
        (y, x, *weights, pooled, z1, gate, mask[1:]),
        (y, x, *weights, pooled, z1, gate, mask.bool()),
        (y, x, *weights, pooled, z1, gate, None),
    ):
        with pytest.raises(RuntimeError, match="seblock_cuda"):
            op.se_backward(*bad, True, True, 0, 0, 2)


@pytest.mark.parametrize("channels, ration", [(64, 0.001), (3, 1 / 16), (64, 0.0), (64, -0.5)])
def test_a_squeeze_without_channels(channels: int, ration: float) -> None:
    with pytest.raises(ValueError, match="must be at least 1, got"):
        SEBlock(channels, ration)


def test_no_samples(device: str) -> None:
    block = SEBlock(16, 1 / 4, device=device)
    x = torch.randn(0, 16, 5, 5, device=device, requires_grad=True)
    y = block(x)
    assert y.shape == (0, 16, 5, 5)
    y.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    for parameter in block.parameters():
        assert parameter.grad is not None and torch.equal(
            parameter.grad, torch.zeros_like(parameter)
        )


@pytest.mark.parametrize("how", ["eager", "aot_eager", "inductor"])
def test_out_of_memory(how: str) -> None:
    """PyTorch's own words, in compiled code too; on pretend GPUs: tests/test_host_failures.py."""
    torch._dynamo.reset()
    x = torch.zeros(1, 1, 1, 1).expand(2**20, 64, 1024, 64)  # 17 TB, once it is copied
    weights = torch.ones(4, 64), torch.ones(64, 4)

    def layer(x: torch.Tensor) -> torch.Tensor:
        return squeeze_excitation(x, *weights)

    call = layer if how == "eager" else torch.compile(layer, backend=how, fullgraph=True)
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match="can't allocate memory: you tried to allocate 17592186"),
    ):
        call(x)
