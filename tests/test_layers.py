"""SqueezeExcitation and EffectiveSE: torchvision's and timm's layers, one to one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from seblock_cuda import EffectiveSE, SqueezeExcitation, fused
from tests import cases
from tests.models import check_same, results
from tests.test_block import step

timm_se = pytest.importorskip("timm.layers.squeeze_excite")
torchvision = pytest.importorskip("torchvision")

PAIRS = {
    "SqueezeExcitation": (
        lambda: SqueezeExcitation(24, 6),
        lambda: torchvision.ops.SqueezeExcitation(24, 6),
    ),
    "SiLU and Hardsigmoid": (
        lambda: SqueezeExcitation(24, 6, nn.SiLU, nn.Hardsigmoid),
        lambda: torchvision.ops.SqueezeExcitation(24, 6, nn.SiLU, nn.Hardsigmoid),
    ),
    "EffectiveSE": (lambda: EffectiveSE(24), lambda: timm_se.EffectiveSEModule(24)),
}


def pair(name: str) -> list[nn.Module]:
    made = []
    for create in PAIRS[name]:
        torch.manual_seed(3)
        made.append(create())
    return made


@pytest.mark.parametrize("name", PAIRS)
def test_same_weights_keys_and_checkpoints(name: str) -> None:
    fused, plain = pair(name)
    assert list(fused.state_dict()) == list(plain.state_dict())
    for key, value in plain.state_dict().items():
        assert torch.equal(fused.state_dict()[key], value)
    plain.load_state_dict(fused.state_dict())
    fused.load_state_dict(
        {
            key: value.flatten(1) if value.dim() > 1 else value
            for key, value in plain.state_dict().items()
        }
    )


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_output_and_gradients(name: str, dtype: torch.dtype, layout: str, device: str) -> None:
    fused, plain = (module.to(device, dtype) for module in pair(name))
    truth = copy.deepcopy(plain).double()
    problem = cases.make_problem((6, 24, (13, 10), 6), dtype, layout, device=device)
    actual, baseline = (step(module, problem.x, problem.dy) for module in (fused, plain))
    expected = step(truth, problem.x.double(), problem.dy.double())
    # float64: PyTorch's derivative of hardsigmoid holds 1/6 in float32
    slack = {torch.float64: 1e-7, torch.float32: 2**-21}.get(dtype, 0.0)
    factor = 2 if dtype == torch.float32 else 1
    for key, value in actual.items():
        assert value.dtype == dtype and value.shape == baseline[key].shape
        error = cases.rms(value.double() - expected[key])
        plain_error = cases.rms(baseline[key].double() - expected[key])
        assert error <= factor * plain_error + slack * cases.rms(expected[key]), key
    assert actual["y"].stride() == problem.x.stride()


@pytest.mark.parametrize("name", PAIRS)
def test_one_and_three_dimensions(name: str) -> None:
    fused, plain = pair(name)
    x = torch.randn(2, 24, 12)
    for given in (x, x.reshape(2, 24, 3, 2, 2)):
        y = plain(x.reshape(2, 24, 3, 4)).reshape(given.shape)
        assert torch.allclose(fused(given), y, atol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_copies_and_pickles(name: str) -> None:
    fused, _ = pair(name)
    x = torch.randn(2, 24, 3, 3)
    for copied in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        check_same(results(copied, x), results(fused, x), 0.0)


def test_factory_arguments_and_repr() -> None:
    made = SqueezeExcitation(16, 4, nn.GELU, nn.Hardsigmoid, device="meta", dtype=torch.bfloat16)
    assert made.fc1.weight.is_meta and made.fc2.bias.dtype == torch.bfloat16
    assert "activation=gelu, gate=hardsigmoid" in repr(made)
    effective = EffectiveSE(16, "sigmoid", device="meta", dtype=torch.float64)
    assert effective.fc.weight.is_meta and effective.fc.weight.dtype == torch.float64
    assert "gate=sigmoid" in repr(effective)
    x = torch.empty(2, 16, 4, 4, device="meta", dtype=torch.float64)
    assert effective(x).shape == x.shape
    effective.to_empty(device="cpu").load_state_dict(EffectiveSE(16).state_dict())
    assert effective(torch.ones(1, 16, 2, 2, dtype=torch.float64)).isfinite().all()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"activation must compute one of relu, .*got Tanh"):
        SqueezeExcitation(8, 2, nn.Tanh)
    with pytest.raises(ValueError, match=r"scale_activation must compute one of sigmoid"):
        SqueezeExcitation(8, 2, nn.ReLU, nn.Softmax)
    with pytest.raises(ValueError, match="gate must be one of sigmoid, hardsigmoid, relu"):
        EffectiveSE(8, "tanh")


def test_the_identity_is_shared_and_never_fake() -> None:
    fused._identities.clear()
    block = EffectiveSE(8)
    x = torch.randn(2, 8, 3, 3)
    torch._dynamo.reset()
    torch.compile(block, backend="aot_eager", fullgraph=True)(x)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        block(mode.from_tensor(x))
    assert not fused._identities
    with torch.inference_mode():
        block(x)
    (identity,) = fused._identities.values()
    assert not identity.is_inference() and torch.equal(identity, torch.eye(8))
    block(x).sum().backward()
    EffectiveSE(8)(x)
    assert len(fused._identities) == 1
