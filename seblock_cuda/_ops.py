"""Loads the op library and describes its operators to PyTorch.

Importing never fails because of the library: what went wrong is kept in :data:`load_error`, and
raised when an operator is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seblock_cuda.checks import check_arguments
from seblock_cuda.reference import accumulation_dtype

LIBRARY = Path(__file__).with_name("libseblock_cuda.so")


def _installed_elsewhere() -> str:
    """What to do where the source folder hides an installed copy that has the library."""
    try:
        installed = Path(str(distribution("seblock_cuda").locate_file("seblock_cuda")))
    except PackageNotFoundError:
        return ""
    if installed == LIBRARY.parent or not (installed / LIBRARY.name).exists():
        return ""
    return (
        f"; the copy that is installed in {installed} has it, but Python found this source folder "
        "first: start it in another folder, or build here (`make build`)"
    )


def _load() -> str | None:
    """Loads the library; the reason if that was not possible."""
    if not LIBRARY.exists():
        return f"{LIBRARY.name} was not built (expected at {LIBRARY})" + _installed_elsewhere()
    try:
        torch.ops.load_library(str(LIBRARY))  # type: ignore[no-untyped-call]
        from seblock_cuda import _core  # noqa: F401
    except (OSError, ImportError) as error:
        return f"{LIBRARY.name} does not fit this PyTorch ({torch.__version__}): {error}"
    return None


load_error: str | None = _load()


def require() -> None:
    """Raises RuntimeError if the op library is not there."""
    if load_error:
        raise RuntimeError(
            f"seblock_cuda has no kernels: {load_error}. "
            "Build them with `pip install --no-build-isolation .` (see python -m seblock_cuda)."
        )


def _built_with_cuda() -> bool:
    if load_error or torch.version.hip is not None:
        return False
    from seblock_cuda import _core

    return bool(_core.build_info()["cuda"])


# Whether the op library holds CUDA kernels. A constant: torch.compile follows no call into C++.
BUILT_WITH_CUDA = _built_with_cuda()


def cpu_capability() -> str:
    """The instruction set that the CPU kernels use here: avx512, avx2 or baseline."""
    require()
    return str(torch.ops.seblock_cuda.cpu_capability())


def cuda_unusable_reason(device: int = 0) -> str | None:
    """Why the CUDA kernels cannot run on `device`, with what to do; None if they can."""
    if load_error:
        return load_error
    if torch.version.hip is not None:
        return "AMD GPUs are not supported; plain PyTorch runs there"
    if not BUILT_WITH_CUDA:
        return "built without CUDA: get a CUDA toolkit (nvcc) and rebuild with SEBLOCK_WITH_CUDA=1"
    if torch.version.cuda is None:
        return f"this PyTorch ({torch.__version__}) is a CPU build: install one with CUDA"
    if problem := torch.ops.seblock_cuda.cuda_problem():
        return str(problem)
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device: check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES"
    from seblock_cuda import _core

    architectures: list[str] = _core.build_info()["architectures"]
    capability = torch.cuda.get_device_capability(device)
    if capability < (7, 5):
        return (
            f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}."
            f"{capability[1]}, the kernels need 7.5: use_fused_se(False) runs plain PyTorch"
        )
    if not any(_runs_on(architecture, capability) for architecture in architectures):
        have = f"{capability[0]}.{capability[1]}"
        return (
            f"{torch.cuda.get_device_name(device)} has compute capability {have}, the kernels were "
            f"built for {', '.join(architectures)}: rebuild with TORCH_CUDA_ARCH_LIST={have}"
        )
    return None


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Binary code runs on its own major, on its minor and above; PTX on anything not older."""
    number, _, ptx = architecture.partition("+")
    major, minor = (int(part.rstrip("af")) for part in number.split("."))
    if number[-1] in "af":
        return (major, minor) == capability
    return (major == capability[0] and minor <= capability[1]) or (
        bool(ptx) and (major, minor) <= capability
    )


def is_native(x: Tensor) -> bool:
    """Whether the kernels read x where it lies: contiguous, or channels last (1-D to 3-D)."""
    return x.is_contiguous() or x.movedim(1, -1).is_contiguous()


def _output_like(x: Tensor) -> Tensor:
    """An empty tensor with the strides that the op gives y: x's own if x is read where it lies."""
    if is_native(x):
        return torch.empty_like(x)
    channels_last = x.dim() in (4, 5) and x.stride(1) == 1 and x.shape[1] > 1
    if not channels_last:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return torch.empty_like(x, memory_format=last)


# What comes after x * gate, as the ops take it: Tail in csrc/se_types.h.
TAIL_NONE, TAIL_ADD, TAIL_ADD_RELU = range(3)


def mask_bytes(x: Tensor) -> int:
    """Size of the mask that says where dy passes a ReLU: see csrc/se_types.h."""
    return _mask_rows(x)[0] * -(-_mask_rows(x)[1] * x.itemsize // 16)


def _mask_rows(x: Tensor) -> tuple[int, int]:
    """Runs of elements that begin at a vector, and their length: samples, in nhwc rows."""
    n, c, s = x.shape[0], x.shape[1], x.shape[2:].numel()
    nchw = s > 1 and _output_like(x).is_contiguous()
    return (n, c * s) if nchw else (n * s, c)


def unpack_mask(mask: Tensor, x: Tensor) -> Tensor:
    """The mask as bools of x's shape; differentiated backwards need it so."""
    bits = mask.unsqueeze(1) & _bits_of_a_byte(x) != 0
    count, length = (1, x.numel()) if x.device.type == "cpu" else _mask_rows(x)
    if count and length:
        bits = bits.flatten()[: x.numel()] if count == 1 else bits.view(count, -1)[:, :length]
    return bits.reshape(-1).as_strided(x.shape, _output_like(x).stride())


def pack_mask(bits: Tensor, x: Tensor) -> Tensor:
    """The other way round."""
    in_order = bits if _output_like(x).is_contiguous() else bits.movedim(1, -1)
    count, length = (1, x.numel()) if x.device.type == "cpu" else _mask_rows(x)
    values, size = _bits_of_a_byte(x), mask_bytes(x)
    missing = size * values.numel() // max(count, 1) - length
    rows = in_order.reshape(count, length).to(values.dtype)
    padded = torch.nn.functional.pad(rows, (0, missing)).reshape(size, values.numel())
    return (padded * values).sum(1).to(torch.uint8)


def _bits_of_a_byte(x: Tensor) -> Tensor:
    """1, 2, 4, ...: a bit for each element of x in 16 bytes."""
    return 2 ** torch.arange(16 // x.itemsize, device=x.device)


# Of each op: the results, allocated in the order in which the op allocates them. For torch.compile,
# export and meta tensors, which need shapes, dtypes and strides, and for _call.


def _fake_forward(
    x: Tensor,
    reduce_weight: Tensor,
    expand_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    gate: int,
    tail: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    check_arguments(x, reduce_weight, expand_weight, reduce_bias, expand_bias, residual)
    acc = accumulation_dtype(x.dtype)
    n, c, r = x.shape[0], x.shape[1], reduce_weight.shape[0]
    y = _output_like(x)
    mask = x.new_empty(mask_bytes(x), dtype=torch.uint8) if tail == TAIL_ADD_RELU else None
    pooled, z1, gates = (x.new_empty(n, width, dtype=acc) for width in (c, r, c))
    return y, pooled, z1, gates, mask


def _fake_backward(
    dy: Tensor,
    x: Tensor,
    reduce_weight: Tensor,
    expand_weight: Tensor,
    pooled: Tensor,
    z1: Tensor,
    gates: Tensor,
    mask: Tensor | None,
    reduce_bias: bool,
    expand_bias: bool,
    activation: int,
    gate: int,
    tail: int,
) -> tuple[Tensor | None, ...]:
    r, c = reduce_weight.shape[:2]
    weights = torch.promote_types(reduce_weight.dtype, expand_weight.dtype)
    dx = _output_like(x)
    dresidual = _output_like(x) if tail == TAIL_ADD_RELU else None
    dreduce = reduce_weight.new_empty(reduce_weight.shape, dtype=weights)
    dexpand = expand_weight.new_empty(expand_weight.shape, dtype=weights)
    dreduce_bias = reduce_weight.new_empty(r, dtype=weights) if reduce_bias else None
    dexpand_bias = reduce_weight.new_empty(c, dtype=weights) if expand_bias else None
    return dx, dreduce, dexpand, dreduce_bias, dexpand_bias, dresidual


def _allocate(fake: Callable[..., Any], missing: int, *args: Any, **kwargs: Any) -> None:
    """Allocates what an op does: copies of what is not read where it lies, results, workspace."""
    tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
    copies = [torch.empty_like(t) for t in tensors if t.dim() > 2 and not is_native(t)]
    results = fake(*args, **kwargs)
    tensors[0].new_empty(missing, dtype=torch.uint8)
    del copies, results


def _explain_memory(op: Any, fake: Callable[..., Any]) -> None:
    """Where `op` finds no memory, lets it raise PyTorch's own error, from allocating the same.

    For whoever calls it from Python, code that torch.compile made too. Between the op and PyTorch
    there is a C interface, which hands on neither the type of an error nor its text.
    """
    run = op._op

    def explained(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except RuntimeError as error:
            missing = re.search(r"out of memory. Could not allocate (\d+) bytes", str(error))
            if missing is None:
                raise
            try:
                _allocate(fake, int(missing[1]), *args, **kwargs)
            except RuntimeError as cause:
                # without its frames, which would keep the tensors alive
                raise cause.with_traceback(None) from None
            raise

    op._op = explained


def se_forward(*arguments: Any) -> Any:
    """The op, for callers that have a gradient of their own or need none.

    What PyTorch runs for a registered gradient costs host time in every call, so the kernels have a
    second name without one. What may be kept as a program (torch.export, make_fx and other modes)
    gets the name with the gradient.
    """
    if torch.compiler.is_compiling():
        exporting = torch.compiler._is_exporting_flag  # is_exporting() is always true under dynamo
        return (_forward if exporting else _forward_no_grad)(*arguments)
    if torch._C._len_torch_dispatch_stack():
        return _forward(*arguments)
    return _run_forward(*arguments)


def forwards() -> tuple[Any, Any]:
    """Both names of the forward op."""
    return torch.ops.seblock_cuda.se_forward, torch.ops.seblock_cuda.se_forward_no_grad


def se_backward(*arguments: Any) -> Any:
    """The op."""
    return _backward(*arguments)


if load_error is None:
    # the overloads themselves: finding them by name costs as much as running a small layer
    _forward = torch.ops.seblock_cuda.se_forward.default
    _forward_no_grad = torch.ops.seblock_cuda.se_forward_no_grad.default
    _backward = torch.ops.seblock_cuda.se_backward.default
    for op, fake in (
        (_forward, _fake_forward),
        (_forward_no_grad, _fake_forward),
        (_backward, _fake_backward),
    ):
        _explain_memory(op, fake)
        torch.library.register_fake(op, fake)
    _run_forward = _forward_no_grad._op  # past a call of torch's that only leads here
