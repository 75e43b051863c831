"""torch's own CUDA kernels, done on the CPU: a pytest plugin, for the stand-in only.

    python -m tests.standin.run python -m pytest -p tests.standin.via_cpu -m gpu tests/test_op.py

Every aten kernel of the CUDA key that computes is replaced by one that copies its arguments down,
calls the operator there and copies up what it has changed and what it returns. Nothing of that can
be captured in a graph.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tests.standin import control

TO_DEVICE, TO_HOST, WHEREVER = 1, 2, 4  # cudaMemcpyKind
# What allocates, makes views, or copies stays torch's own.
KEEP = {
    "empty.memory_format", "empty_strided", "as_strided", "view", "view.dtype", "_reshape_alias",
    "unfold", "set_", "set_.source_Storage", "set_.source_Storage_storage_offset",
    "set_.source_Tensor", "set_.source_Tensor_storage_offset", "resize_", "record_stream",
    "is_pinned", "_pin_memory", "_local_scalar_dense", "is_set_to", "view_as_real",
    "view_as_complex",
}  # fmt: skip
CHOOSE_CUDNN = ["aten::convolution", "aten::_convolution", "aten::convolution_backward"]


def copy_bytes(to: int, source: int, count: int, kind: int, device: torch.device) -> None:
    """On torch's current stream, as torch itself copies."""
    stream = torch._C._cuda_getCurrentRawStream(device.index)
    with torch.cuda.device(device):
        if count and control.runtime().cudaMemcpyAsync(
            ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(count),
            ctypes.c_int(kind), ctypes.c_void_p(stream),
        ):  # fmt: skip
            raise RuntimeError(f"via_cpu: cudaMemcpyAsync: {control.faults()}")


class Copies:
    """CPU copies of CUDA storages: one for all tensors that share a storage."""

    def __init__(self) -> None:
        self.of: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage, torch.device]] = {}

    def down(self, tensor: Tensor) -> Tensor:
        if not tensor.is_cuda:
            return tensor
        storage = tensor.untyped_storage()
        if storage._cdata not in self.of:
            host = torch.UntypedStorage(storage.nbytes())
            copy_bytes(
                host.data_ptr(), storage.data_ptr(), storage.nbytes(), TO_HOST, tensor.device
            )
            self.of[storage._cdata] = (host, storage, tensor.device)
        host = self.of[storage._cdata][0]
        empty = torch.empty(0, dtype=tensor.dtype)
        return empty.set_(host, tensor.storage_offset(), tensor.size(), tensor.stride())

    def up(self, tensor: Tensor) -> None:
        """What the CPU copy of the tensor's storage holds now."""
        host, storage, device = self.of[tensor.untyped_storage()._cdata]
        copy_bytes(storage.data_ptr(), host.data_ptr(), storage.nbytes(), TO_DEVICE, device)


def fill(to: Tensor, source: Tensor) -> Tensor:
    """A dense CUDA tensor with the values of a CPU tensor."""
    dense = torch.empty_strided(to.size(), to.stride(), dtype=to.dtype).copy_(source)
    count = dense.untyped_storage().nbytes()
    copy_bytes(to.data_ptr(), dense.data_ptr(), count, TO_DEVICE, to.device)
    return to


class Call:
    """One call of an operator, on the CPU."""

    def __init__(self) -> None:
        self.copies = Copies()
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}  # id of the copy -> copy, original
        self.device: torch.device | None = None

    def down(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_cuda:
            self.device = self.device or value.device
            lowered = self.copies.down(value)
            self.pairs[id(lowered)] = (lowered, value)
            return lowered
        if isinstance(value, torch.device) and value.type == "cuda":
            index = torch.cuda.current_device() if value.index is None else value.index
            self.device = self.device or torch.device("cuda", index)
            return torch.device("cpu")
        if isinstance(value, torch.Generator) and value.device.type == "cuda":
            return None
        return value

    def write_back(self, value: Any) -> None:
        for low in value if isinstance(value, (list, tuple)) else [value]:
            if id(low) not in self.pairs:
                continue
            high = self.pairs[id(low)][1]
            if high.size() == low.size():
                self.copies.up(high)
            else:
                fill(high.resize_(low.size()), low)

    def up(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in self.pairs:
            return self.pairs[id(value)][1]
        size, stride = value.size(), value.stride()
        return fill(torch.empty_strided(size, stride, dtype=value.dtype, device=self.device), value)


def replacement(op: Any) -> Callable[..., Any]:
    arguments = op._schema.arguments

    def kernel(*args: Any, **kwargs: Any) -> Any:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(f"via_cpu: {op} cannot be captured")
        call = Call()
        low_args = list(tree_map(call.down, args))
        low_kwargs = tree_map(call.down, kwargs)
        for index, (value, argument) in enumerate(zip(low_args, arguments)):
            if str(argument.type) == "Tensor" and isinstance(value, (bool, int, float)):
                low_args[index] = torch.tensor(value)  # a number given for a tensor
        result = op(*low_args, **low_kwargs)
        given = dict(zip((argument.name for argument in arguments), low_args)) | low_kwargs
        for argument in arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                call.write_back(given.get(argument.name))
        return tree_map(call.up, result)

    return kernel


def is_dense_copy(to: Tensor, source: Tensor) -> bool:
    """Whether torch copies these two without a kernel: byte by byte."""
    if to.dtype != source.dtype or to.size() != source.size() or to.stride() != source.stride():
        return False
    step = 1
    for stride, size in sorted((st, si) for st, si in zip(to.stride(), to.size()) if si != 1):
        if stride != step:
            return False
        step *= size
    return not (to.is_conj() or source.is_conj() or to.is_neg() or source.is_neg())


def copy_(self: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    if not self.numel():
        return self
    if self.is_cuda and is_dense_copy(self, source):
        if source.is_cuda and source.device != self.device:
            there = torch.cuda.current_stream(source.device)
            torch.cuda.current_stream(self.device).wait_stream(there)
        count = self.numel() * self.itemsize
        copy_bytes(self.data_ptr(), source.data_ptr(), count, WHEREVER, self.device)
        return self
    copies = Copies()
    low_source = copies.down(source)
    if not self.is_cuda:
        return self.copy_(low_source)
    copies.down(self).copy_(low_source)
    copies.up(self)
    return self


def install() -> torch.library.Library:
    library = torch.library.Library("aten", "IMPL", "CUDA")
    names = sorted(torch._C._dispatch_get_registrations_for_dispatch_key("CUDA"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each says that a kernel is replaced
        for name in [*names, *CHOOSE_CUDNN]:
            packet, _, overload = name.removeprefix("aten::").partition(".")
            if not name.startswith("aten::") or name.removeprefix("aten::") in KEEP:
                continue
            op = getattr(getattr(torch.ops.aten, packet), overload or "default", None)
            if op is not None:
                library.impl(name[6:], replacement(op), allow_override=True)
        library.impl("copy_", copy_, allow_override=True)
    torch.backends.cudnn.enabled = False
    return library


_library = install()  # kernels are there as long as this is
