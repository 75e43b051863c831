"""What users are told when CUDA refuses or fails, and that nothing is left behind: pretend GPUs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from seblock_cuda import __main__ as screen
from seblock_cuda import _ops, explain, squeeze_excitation
from tests import cases
from tests.standin import control
from tests.test_op import run

pytestmark = pytest.mark.standin
SMALL = (3, 24, (8, 8), 4)
INVALID_VALUE, OUT_OF_RESOURCES, ILLEGAL_ADDRESS, LAUNCH_FAILED = 1, 701, 700, 719
MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def _start_afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SEBLOCK_STRATEGY", raising=False)
    control.faults(), control.launches()
    yield
    assert torch.cuda.device_count() == 0 or torch.cuda.current_device() == 0


def last_error() -> int:
    return int(control.runtime().cudaPeekAtLastError())


def small(device: str = "cuda") -> cases.Problem:
    return control.moved(cases.make_problem(SMALL), device)


def check_small(device: str = "cuda") -> None:
    """A layer runs, and runs right."""
    problem = cases.make_problem(SMALL)
    results = run(control.moved(problem, device))
    cases.check_no_worse_than_plain({name: v.cpu() for name, v in results.items()}, problem)


# ---- out of memory


def leave(megabytes: int) -> list[torch.Tensor]:
    """So much memory may still be had on device 1, while the result fills the caches."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(1).total_memory
    reserved = torch.cuda.memory_reserved("cuda:1")
    torch.cuda.set_per_process_memory_fraction(reserved / total, "cuda:1")
    fillers = []
    for size in (16 * MEGABYTE, MEGABYTE + 512, 1 << 16, 512):  # beyond 1 MB, segments of their own
        try:
            while True:
                fillers.append(torch.empty(size, dtype=torch.uint8, device="cuda:1"))
        except torch.OutOfMemoryError:
            pass
    limit = (reserved + megabytes * MEGABYTE) / total
    torch.cuda.set_per_process_memory_fraction(limit, "cuda:1")
    return fillers


@pytest.fixture
def scarce() -> Iterator[None]:
    """Lifts the limits that a test sets."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, "cuda:1")
    torch.cuda.empty_cache()


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_out_of_memory(direction: str, scarce: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever allocation finds no memory: PyTorch's own error, and all is as before."""
    monkeypatch.setenv("SEBLOCK_STRATEGY", "split")
    problem = cases.make_problem((512, 192, (2, 2), 2), tail="add_relu")
    there = control.moved(problem, "cuda:1")
    leaves = [there.x, there.reduce_weight, there.expand_weight, there.residual]
    for leaf in leaves:
        leaf.requires_grad_()

    def forward() -> torch.Tensor:
        return squeeze_excitation(there.x, *there.parameters, **there.tail)

    y = forward() if direction == "backward" else None
    failed = set()
    for megabytes in range(0, 200, 2):
        fillers = leave(megabytes)
        before = torch.cuda.memory_allocated("cuda:1")
        try:
            if y is None:
                forward()
            else:
                y.backward(there.dy, retain_graph=True)
            break
        except torch.OutOfMemoryError as error:
            text = str(error)
            assert text.startswith("CUDA out of memory. Tried to allocate"), text
            assert "seblock" not in text
            failed.add(str(error.__context__))  # the op's own words: how many bytes
            assert torch.cuda.memory_allocated("cuda:1") == before, text
            assert torch.cuda.current_device() == 0
            assert all(leaf.grad is None for leaf in leaves)
            assert last_error() == 0
        del fillers
    else:
        raise AssertionError("never enough memory")
    assert len(failed) > 1, failed  # several allocations, each in its turn
    if y is not None:
        assert torch.allclose(there.x.grad.cpu().double(), cases.truth(problem)["dx"], atol=1e-4)


@pytest.mark.parametrize("how", ["op", "aot_eager"])
def test_out_of_memory_where_the_op_itself_is_called(how: str, scarce: None) -> None:
    """By programs and by compiled code (inductor's on a CPU: tests/test_errors.py)."""
    torch._dynamo.reset()
    x = torch.empty(64, 64, 32, 32, device="cuda:1")
    weights = torch.empty(4, 64, device="cuda:1"), torch.empty(64, 4, device="cuda:1")

    def layer() -> torch.Tensor:
        if how == "op":
            return torch.ops.seblock_cuda.se_forward.default(x, *weights, *[None] * 3, *[0] * 3)[0]
        return squeeze_excitation(x, *weights)

    call = layer if how == "op" else torch.compile(layer, backend=how, fullgraph=True)
    with torch.no_grad():
        call()  # compiled
        fillers = leave(2)
        with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory. Tried to allocate"):
            call()
    del fillers


# ---- refused launches


@pytest.mark.parametrize("call", ["cudaLaunchKernelExC", "cudaMemsetAsync", "cudaFuncSetAttribute"])
def test_a_refused_launch_is_named_and_forgotten(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategies = {"cudaMemsetAsync": "stream", "cudaFuncSetAttribute": "resident"}
    monkeypatch.setenv("SEBLOCK_STRATEGY", strategies.get(call, "split"))
    problem = cases.make_problem((9, 192, (14, 14), 16), torch.float16)  # more than 48 KiB shared
    there = control.moved(problem, "cuda")
    control.fail_next(call, OUT_OF_RESOURCES)
    with pytest.raises(RuntimeError, match=r"seblock_cuda: .+: .*as a test has asked"):
        run(there)
    assert last_error() == 0
    results = run(there)
    cases.check_no_worse_than_plain({name: v.cpu() for name, v in results.items()}, problem)


def test_the_last_error_of_somebody_else_stays_theirs() -> None:
    there = small()
    run(there)
    assert control.runtime().cudaSetDevice(99) != 0
    theirs = last_error()
    assert theirs != 0
    for strategy in ("split", "stream", "resident"):
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setenv("SEBLOCK_STRATEGY", strategy)
            squeeze_excitation(there.x, *there.parameters)
        assert last_error() == theirs
    assert control.runtime().cudaGetLastError() == theirs
    assert control.faults() == ["cudaSetDevice(99)"]


@pytest.mark.parametrize("error", [ILLEGAL_ADDRESS, LAUNCH_FAILED])
def test_earlier_work_that_failed_is_not_called_ours(error: int) -> None:
    there = small()
    control.fail_next("cudaLaunchKernelExC", error)
    with pytest.raises(RuntimeError, match="work that ran on this device before has failed"):
        squeeze_excitation(there.x, *there.parameters)
    control.fail_next("cudaLaunchKernelExC", INVALID_VALUE)
    with pytest.raises(RuntimeError) as refused:
        squeeze_excitation(there.x, *there.parameters)
    assert "before" not in str(refused.value)


# ---- arguments on several devices


@pytest.mark.parametrize("elsewhere", ["cpu", "cuda:1"])
def test_arguments_on_several_devices_are_refused(elsewhere: str) -> None:
    for name in ("reduce_weight", "expand_weight", "residual"):
        there = control.moved(cases.make_problem(SMALL, tail="add"), "cuda:0")
        setattr(there, name, getattr(there, name).to(elsewhere))
        with pytest.raises(RuntimeError, match=f"{name}.*{elsewhere}|{elsewhere}.*{name}"):
            squeeze_excitation(there.x, *there.parameters, **there.tail)
    there = small()
    y = squeeze_excitation(there.x.requires_grad_(), *there.parameters)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(y, there.x, there.dy.to(elsewhere))
    assert control.faults() == []


# ---- machines that cannot run the kernels


def info_screen(capsys: pytest.CaptureFixture[str]) -> str:
    screen.main()
    return " ".join(capsys.readouterr().out.split())


def test_a_machine_that_can(capsys: pytest.CaptureFixture[str]) -> None:
    assert _ops.cuda_unusable_reason(0) is None and _ops.cuda_unusable_reason(1) is None
    text = info_screen(capsys)
    for index in (0, 1):
        assert f"cuda:{index} Stand-in GPU {index}, capability 9.0" in text
    assert text.count("the CUDA kernels run here") == 2
    assert "can run here yes" in text


@pytest.mark.standin(STANDIN_DRIVER="12080")
def test_a_driver_too_old(capsys: pytest.CaptureFixture[str]) -> None:
    problem = (
        "the driver serves CUDA 12.8, the kernels were built with CUDA 13.0: update the driver"
    )
    assert _ops.cuda_unusable_reason() == problem
    assert f"cannot run {problem}" in info_screen(capsys)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"seblock_cuda: {problem}"):
            run(small())
    assert last_error() == 0


@pytest.mark.standin(STANDIN_NO_IMAGE="1", STANDIN_CAPABILITY="110")
def test_kernels_for_another_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Python says what they were built for, C++ for which device they were not."""
    from seblock_cuda import _core

    built_for = " ".join(arch.removesuffix("+PTX") for arch in _core.build_info()["architectures"])
    if "11.0" in built_for:
        pytest.skip(f"this build serves 11.0: {built_for}")
    for text in (_ops.cuda_unusable_reason() or "", info_screen(capsys)):
        assert "has compute capability 11.0, the kernels were built for" in text
        assert "rebuild with TORCH_CUDA_ARCH_LIST=11.0" in text
    for _ in range(2):
        with pytest.raises(RuntimeError) as refused:
            run(small())
        assert "11.0, the kernels were not built for it (" in str(refused.value)
        assert "rebuild with TORCH_CUDA_ARCH_LIST=11.0" in str(refused.value)
    assert last_error() == 0


@pytest.mark.standin(CUDA_VISIBLE_DEVICES="1")
def test_the_first_device_is_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    assert torch.cuda.device_count() == 1
    check_small("cuda:0")
    assert "cuda:0 Stand-in GPU 1" in info_screen(capsys)


@pytest.mark.standin(CUDA_VISIBLE_DEVICES="")
def test_all_devices_are_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    assert "CUDA_VISIBLE_DEVICES" in (_ops.cuda_unusable_reason() or "")
    assert "PyTorch sees no CUDA device" in info_screen(capsys)
    x = torch.randn(2, 8, 4, 4)
    assert "resident" in str(explain(x, torch.randn(2, 8)))
