"""Any strides: contiguous and channels last keep their layout, the rest costs a copy and no
accuracy.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from seblock_cuda import squeeze_excitation
from tests import cases

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "spatial transpose": lambda x: x.transpose(2, 3),
    "every other row": lambda x: x[:, :, ::2],
    "every other column": lambda x: x[..., ::2],
    "half of the channels": lambda x: x[:, :12],
    "every other channel": lambda x: x[:, ::2],
    "every other sample": lambda x: x[::2],
    "batch and channels swapped": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "expanded over space": lambda x: x[:, :, :1, :1].expand(-1, -1, 6, 8),
    "expanded over the batch": lambda x: x[:1].expand(3, -1, -1, -1),
    "shifted by one element": lambda x: x.flatten()[1:].as_strided(x[:, :, 1:].shape, x.stride()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("view", VIEWS)
def test_views_of_x_and_of_its_gradient(
    view: str, layout: str, dtype: torch.dtype, device: str
) -> None:
    base = cases.make_problem((4, 24, (6, 8), 3), dtype, layout, device=device)
    x, dy = VIEWS[view](base.x), VIEWS[view](base.dy)
    c = x.shape[1]
    weights = [base.reduce_weight[:, :c], base.expand_weight[:c]]

    def run(x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
        x = x.detach().requires_grad_()
        y = squeeze_excitation(x, *weights)
        return (y, *torch.autograd.grad(y, x, dy))

    contiguous = x.contiguous(), dy.contiguous()
    problem = cases.Problem(*contiguous, *weights)
    truth = cases.truth(problem)
    exact = run(*contiguous)
    for actual, expected, name in zip(run(x, dy), exact, ("y", "dx")):
        # another order of summation where the copy is channels last: equal to rounding
        error = cases.rms(actual.double() - truth[name])
        assert error <= 1.5 * cases.rms(expected.double() - truth[name]) + 1e-7


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("spatial", [(7,), (5, 4), (3, 4, 5)], ids=["1-D", "2-D", "3-D"])
def test_output_and_gradient_keep_the_layout(
    spatial: tuple[int, ...], layout: str, device: str
) -> None:
    problem = cases.make_problem((2, 8, spatial, 2), layout=layout, device=device)
    x = problem.x.detach().requires_grad_()
    y = squeeze_excitation(x, problem.reduce_weight, problem.expand_weight)
    assert y.stride() == x.stride()
    for dy in (
        problem.dy,
        cases.in_layout(problem.dy, "nchw"),
        cases.in_layout(problem.dy, "nhwc"),
    ):
        (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
        assert dx.stride() == x.stride()


def test_the_plan_for_meta_and_fake_tensors_has_the_same_strides(device: str) -> None:
    """What torch.compile is told agrees with what the op does, for every view."""
    for layout in cases.LAYOUTS:
        base = cases.make_problem((4, 24, (6, 8), 3), layout=layout, device=device)
        for view in VIEWS.values():
            x = view(base.x)
            c = x.shape[1]
            weights = [base.reduce_weight[:, :c], base.expand_weight[:c]]
            op = torch.ops.seblock_cuda.se_forward
            real = op(x, *weights, None, None, None, 0, 0, 0)[0]
            fake = op(_meta(x), *map(_meta, weights), None, None, None, 0, 0, 0)[0]
            assert fake.stride() == real.stride()


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
