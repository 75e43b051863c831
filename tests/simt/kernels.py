"""Runs the CUDA kernels on torch CPU tensors through the SIMT harness: forward and backward, as the
op does.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from seblock_cuda import _core, _ops, reference
from tests import cases

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
TAILS = ["", None, "relu"]  # residual_activation by the number of se_types.h's Tail; "": none
POISON = float("nan")  # in every output and workspace before a run: a missing write shows


@dataclass
class Launch:
    """What one launch did to memory: see tests/simt/simt.h."""

    kernel: str
    blocks: int
    shared_bytes: int  # dynamic shared memory of a block
    tensors: dict[str, dict[str, int]]  # name -> the fields of TensorTraffic
    shared_requests: int
    bank_conflicts: int


@dataclass
class Run:
    """What a forward and a backward pass left behind."""

    y: Tensor
    pooled: Tensor
    z1: Tensor
    gate: Tensor
    gradients: reference.Gradients
    mask: Tensor | None  # of the residual's ReLU
    forward_launches: list[Launch] = field(default_factory=list)  # when recorded
    backward_launches: list[Launch] = field(default_factory=list)


def named(run: Run) -> dict[str, Tensor]:
    """All that a run has computed, by name."""
    names = ("y", "mask", "pooled", "z1", "gate")
    results = {name: getattr(run, name) for name in names} | run.gradients._asdict()
    return {name: tensor for name, tensor in results.items() if tensor is not None}


def load(path: Path) -> ModuleType:
    """The module that tests/simt/build.py has built at `path`."""
    name = f"{path.parent.parent.name}.simt_kernels"  # pybind11 loads one module of a name
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layout_of(x: Tensor) -> int:
    """0 for nchw, 1 for nhwc, as in se_types.h."""
    return 0 if x.is_contiguous() else 1


STRATEGIES = ["split", "stream", "resident"]
LIMIT_NAMES = ("capability", "multiprocessors", "l2_bytes", "shared_bytes", "stream_blocks")

# Of the pretended device: multiprocessors few enough that small problems have several tasks to a
# block.
LIMITS = _core.DeviceLimits(
    capability=90, multiprocessors=2, l2_bytes=2**20, shared_bytes=99 * 1024, stream_blocks=4
)


@dataclass(frozen=True)
class Forced:
    """What a plan is to have, see csrc/plan.h; 0: as the rule has it."""

    group: int = 0
    lag: int = 0
    blocks: int = 0


AS_PLANNED = Forced()


def run(
    module: ModuleType,
    problem: cases.Problem,
    *,
    strategy: str = "split",
    forced: Forced = AS_PLANNED,
    record: bool = False,
) -> Run:
    """Forward and backward of the problem on the harness `module`, by `strategy`.

    x is contiguous or channels last, dy and the residual alike. With `record`, every access is
    checked and counted. Raises ValueError where the strategy cannot run the problem.
    """
    x, dy, residual = problem.x, problem.dy, problem.residual
    n, c = x.shape[:2]
    r = problem.reduce_weight.shape[0]
    acc = reference.accumulation_dtype(x.dtype)
    description = module.Problem(
        n,
        c,
        x.shape[2:].numel(),
        r,
        layout_of(x),
        DTYPES.index(x.dtype),
        DTYPES.index(problem.reduce_weight.dtype),
        list(reference.ACTIVATIONS).index(problem.activation),
        list(reference.GATES).index(problem.gate),
        TAILS.index(problem.residual_activation) if residual is not None else 0,
    )
    masked = problem.residual_activation == "relu"
    tensors = [t for t in (x, dy, residual) if t is not None]
    aligned = all(t.data_ptr() % 16 == 0 for t in tensors)
    limits = [getattr(LIMITS, name) for name in LIMIT_NAMES]

    def plan_of(forward: bool) -> Any:
        numbers = (forced.group, forced.lag, forced.blocks)
        if strategy != "stream":
            numbers = (forced.group, 0, 0)
        return module.plan(description, forward, aligned, strategy, limits, *numbers)

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.full(shape, POISON, dtype=dtype)

    def workspace(size: int) -> Tensor:
        return torch.full((-(-size // acc.itemsize),), POISON, dtype=acc)

    forward_plan, backward_plan = plan_of(True), plan_of(False)
    weights = {"W1": problem.reduce_weight, "W2": problem.expand_weight}
    biases = {"b1": problem.reduce_bias, "b2": problem.expand_bias}
    y = torch.full_like(x, POISON)
    mask = torch.full((_ops.mask_bytes(x),), 255, dtype=torch.uint8) if masked else None
    saved = {
        "pooled": empty(n, c, dtype=acc),
        "z1": empty(n, r, dtype=acc),
        "gate": empty(n, c, dtype=acc),
    }
    forward = _direction(
        module,
        "forward",
        description,
        forward_plan,
        {**weights, **biases, "x": x, "residual": residual},
        {"y": y, "mask": mask, **saved, "workspace": workspace(forward_plan.workspace_bytes)},
        ["W1", "W2", "b1", "b2", "x", "residual", "y", "mask", *saved, "workspace"],
        record,
    )
    dx = torch.full_like(x, POISON)
    dresidual = torch.full_like(x, POISON) if masked else None
    dweights = [torch.full_like(weight, POISON) for weight in weights.values()]
    dbiases = [None if bias is None else torch.full_like(bias, POISON) for bias in biases.values()]
    gradients = dict(zip(("dW1", "dW2", "db1", "db2"), (*dweights, *dbiases)))
    backward = _direction(
        module,
        "backward",
        description,
        backward_plan,
        {**weights, "dy": dy, "x": x, "mask": mask, **saved},
        {
            "dx": dx,
            "dresidual": dresidual,
            **gradients,
            "workspace": workspace(backward_plan.workspace_bytes),
        },
        ["W1", "W2", "dy", "x", "mask", *saved, "dx", "dresidual", *gradients, "workspace"],
        record,
    )
    if residual is not None and not masked:
        dresidual = dy
    return Run(
        y,
        saved["pooled"],
        saved["z1"],
        saved["gate"],
        reference.Gradients(dx, *dweights, *dbiases, dresidual),
        mask,
        forward_launches=forward,
        backward_launches=backward,
    )


def _direction(
    module: ModuleType,
    name: str,
    problem: object,
    plan: object,
    inputs: dict[str, Tensor | None],
    outputs: dict[str, Tensor | None],
    order: list[str],
    record: bool,
) -> list[Launch]:
    """Calls module.forward or module.backward with the tensors in the order of module.cpp."""
    tensors = {**inputs, **outputs}
    call = getattr(module, name)
    addresses = [0 if tensors[key] is None else tensors[key].data_ptr() for key in order]  # type: ignore[union-attr]
    if not record:
        call(problem, plan, addresses)
        return []
    present = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    module.start_recording(
        [
            (key, tensor.data_ptr(), tensor.nbytes, tensor.itemsize, key in outputs)
            for key, tensor in present.items()
        ]
    )
    try:
        call(problem, plan, addresses)
    finally:
        launches = module.stop_recording()
    return [
        Launch(
            launch["kernel"],
            launch["blocks"],
            launch["shared_bytes"],
            dict(zip(present, launch["tensors"])),
            launch["shared_requests"],
            launch["bank_conflicts"],
        )
        for launch in launches
    ]
