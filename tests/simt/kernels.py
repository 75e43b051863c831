"""Runs the CUDA kernels on torch CPU tensors through the SIMT harness: forward and backward, as the
op does.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from seblock_cuda import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
POISON = float("nan")  # in every output and workspace before a run: a missing write shows


@dataclass
class Launch:
    """What one launch did to memory: see tests/simt/memory.h."""

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
    forward_launches: list[Launch] = field(default_factory=list)  # when recorded
    backward_launches: list[Launch] = field(default_factory=list)


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


def run(
    module: ModuleType,
    dy: Tensor,
    x: Tensor,
    reduce_weight: Tensor,
    expand_weight: Tensor,
    reduce_bias: Tensor | None = None,
    expand_bias: Tensor | None = None,
    activation: str = "relu",
    gate: str = "sigmoid",
    *,
    record: bool = False,
) -> Run:
    """Forward and backward of x (contiguous or channels last, dy alike) on the harness `module`.

    With `record`, every access is checked and counted.
    """
    n, c = x.shape[:2]
    r = reduce_weight.shape[0]
    acc = reference.accumulation_dtype(x.dtype)
    problem = module.Problem(
        n,
        c,
        x[0, 0].numel() if n else x.shape[2:].numel(),
        r,
        layout_of(x),
        DTYPES.index(x.dtype),
        DTYPES.index(reduce_weight.dtype),
        list(reference.ACTIVATIONS).index(activation),
        list(reference.GATES).index(gate),
    )

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.full(shape, POISON, dtype=dtype)

    def workspace(size: int) -> Tensor:
        return torch.full((size // acc.itemsize,), POISON, dtype=acc)

    forward_bytes, backward_bytes = module.workspace_bytes(problem)
    weights = {"W1": reduce_weight, "W2": expand_weight}
    biases = {"b1": reduce_bias, "b2": expand_bias}
    y = torch.full_like(x, POISON)
    saved = {
        "pooled": empty(n, c, dtype=acc),
        "z1": empty(n, r, dtype=acc),
        "gate": empty(n, c, dtype=acc),
    }
    forward = _direction(
        module,
        "forward",
        problem,
        {**weights, **biases, "x": x},
        {"y": y, **saved, "workspace": workspace(forward_bytes)},
        ["W1", "W2", "b1", "b2", "x", "y", "pooled", "z1", "gate", "workspace"],
        record,
    )
    dx = torch.full_like(x, POISON)
    dweights = [torch.full_like(weight, POISON) for weight in weights.values()]
    dbiases = [None if bias is None else torch.full_like(bias, POISON) for bias in biases.values()]
    gradients = dict(zip(("dW1", "dW2", "db1", "db2"), (*dweights, *dbiases)))
    backward = _direction(
        module,
        "backward",
        problem,
        {**weights, "dy": dy, "x": x, **saved},
        {"dx": dx, **gradients, "workspace": workspace(backward_bytes)},
        ["W1", "W2", "dy", "x", *saved, "dx", *gradients, "workspace"],
        record,
    )
    return Run(
        y,
        saved["pooled"],
        saved["z1"],
        saved["gate"],
        reference.Gradients(dx, *dweights, *dbiases),
        forward_launches=forward,
        backward_launches=backward,
    )


def _direction(
    module: ModuleType,
    name: str,
    problem: object,
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
        call(problem, addresses)
        return []
    present = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    module.start_recording(
        [
            (key, tensor.data_ptr(), tensor.nbytes, tensor.itemsize, key in outputs)
            for key, tensor in present.items()
        ]
    )
    try:
        call(problem, addresses)
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
