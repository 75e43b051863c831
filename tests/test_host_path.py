"""The whole CUDA path but the machine code, without a GPU: torch, the op library, two pretend GPUs.

Values, devices, streams, graphs, threads. What happens when something fails: test_host_failures.py;
whether these tests see a fault: test_host_mutations.py; what they cannot:
docs/maintainers/host-path.md.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seblock_cuda import explain, squeeze_excitation
from tests import cases
from tests.standin import control
from tests.test_op import run

pytestmark = pytest.mark.standin
# Every tensor is an allocation of its own, with a gap behind it: no access goes beyond an end.
exact_bounds = pytest.mark.standin(PYTORCH_NO_CUDA_MEMORY_CACHING="1")

STRATEGIES = ["split", "stream", "resident"]
DEVICES = ["cuda:0", "cuda:1"]  # cuda:0 is the current one
SMALL = (3, 24, (8, 8), 4)
LARGE_SHARED = (9, 128, (14, 14), 16)  # more shared memory than a kernel gets without asking


@pytest.fixture(autouse=True)
def _no_faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SEBLOCK_STRATEGY", raising=False)
    control.faults(), control.launches()
    yield
    for device in range(2):
        torch.cuda.synchronize(device)
    assert control.faults() == []
    assert torch.cuda.current_device() == 0


@pytest.fixture(params=STRATEGIES)
def strategy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SEBLOCK_STRATEGY", request.param)
    name: str = request.param
    return name


def check(results: dict[str, Tensor], problem: cases.Problem, device: str) -> None:
    """Of results on the device, for a problem on the CPU."""
    for name, value in results.items():
        assert value.device == torch.device(device), name
    assert results["y"].stride() == results["dx"].stride() == problem.x.stride()
    on_cpu = {name: value.cpu() for name, value in results.items()}
    cases.check_no_worse_than_plain(on_cpu, problem)


def places() -> set[tuple[int, str]]:
    """Device and kind of stream of all launches and memsets since the last call."""
    return {(launch.device, launch.stream) for launch in control.launches()} - {
        (0, "attribute"),
        (1, "attribute"),
    }


@exact_bounds
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tail", [None, *cases.TAILS])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_values(
    strategy: str, dtype: torch.dtype, layout: str, tail: str | None, device: str
) -> None:
    problem = cases.make_problem(SMALL, dtype, layout, bias=True, tail=tail)
    there = control.moved(problem, device)
    if dtype == torch.float64 and strategy != "split":
        with pytest.raises(ValueError, match=strategy):
            explain(there.x, *there.parameters)
        return
    check(run(there), problem, device)
    assert places() == {(int(device[-1]), "default")}


def test_the_log_has_the_plans_that_explain_tells(
    strategy: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    few = (2, *SMALL[1:])  # no more tasks than a stand-in, which has few, has blocks
    there = control.moved(cases.make_problem(few, tail="add_relu"), "cuda:1")
    plans = explain(there.x, *there.parameters, **there.tail)
    capfd.readouterr()
    monkeypatch.setenv("SEBLOCK_LOG_PLAN", "1")
    run(there)
    logged = [line for line in capfd.readouterr().err.splitlines() if "seblock_cuda: " in line]
    assert logged == [f"seblock_cuda: {line}" for line in repr(plans).splitlines()]


@exact_bounds
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", cases.SHAPES)
def test_shapes(shape: str, layout: str) -> None:
    problem = cases.make_problem(
        cases.SHAPES[shape], torch.bfloat16, layout, weight_dtype=torch.float32, tail="add_relu"
    )
    check(run(control.moved(problem, "cuda:1")), problem, "cuda:1")


@exact_bounds
def test_a_tensor_that_starts_between_two_vectors(strategy: str) -> None:
    problem = cases.make_problem(SMALL, torch.bfloat16)
    there = control.moved(problem, "cuda")
    shifted = torch.empty(problem.x.numel() + 1, dtype=torch.bfloat16, device="cuda")[1:]
    there.x = shifted.view(problem.x.shape).copy_(there.x)
    try:
        explain(there.x, *there.parameters)
    except ValueError as reason:
        assert strategy in str(reason)
        return
    check(run(there), problem, "cuda:0")


def test_shared_memory_beyond_48_KiB_on_both_devices(strategy: str) -> None:
    """Each device has a limit of its own; each kernel is given it once."""
    problem = cases.make_problem(LARGE_SHARED, torch.bfloat16)
    for repeated in (False, True):
        for index, device in enumerate(DEVICES):
            check(run(control.moved(problem, device)), problem, device)
            for launch in control.launches():
                if launch.stream == "attribute":
                    assert not repeated, launch
                    assert launch.shared_bytes == [227, 163][index] * 1024


def test_the_op_waits_for_nothing(strategy: str) -> None:
    there = control.moved(cases.make_problem(SMALL), "cuda")
    run(there)
    torch.cuda.synchronize()
    run(there)
    assert control.pending() > 0
    torch.cuda.synchronize()
    assert control.pending() == 0


@pytest.mark.parametrize("device", DEVICES)
def test_a_side_stream(strategy: str, device: str) -> None:
    problem = cases.make_problem(LARGE_SHARED, torch.bfloat16, bias=True)
    side = torch.cuda.Stream(device)
    with torch.cuda.stream(side):
        there = control.moved(problem, device)
        results = run(there)
        assert places() == {(int(device[-1]), "side")}
        check(results, problem, device)


def test_several_streams_at_once(strategy: str) -> None:
    problems = [cases.make_problem(SMALL, torch.bfloat16, seed=seed) for seed in range(4)]
    there = [control.moved(problem, "cuda") for problem in problems]
    streams = [torch.cuda.Stream() for _ in problems]
    torch.cuda.synchronize()
    results: list[dict[str, Tensor]] = []
    for _ in range(3):
        results = []
        for problem, stream in zip(there, streams):
            with torch.cuda.stream(stream):
                results.append(run(problem))
    torch.cuda.synchronize()
    for result, problem in zip(results, problems):
        check(result, problem, "cuda:0")


def test_what_a_side_stream_drops_is_not_lost(strategy: str) -> None:
    """The allocator gives the workspace of a finished call to the next on the same stream only."""
    problem = cases.make_problem(SMALL)
    there = control.moved(problem, "cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(5):
            run(there)
    check(run(there), problem, "cuda:0")


def test_capture_and_replay(strategy: str) -> None:
    """Captured once, forward and backward, replayed on new data."""
    problem = cases.make_problem(LARGE_SHARED, torch.bfloat16)
    there = control.moved(problem, "cuda")
    leaves = [there.x, there.reduce_weight, there.expand_weight]
    for leaf in leaves:
        leaf.requires_grad_()

    def train() -> tuple[Tensor, ...]:
        y = squeeze_excitation(there.x, *there.parameters)
        return (y, *torch.autograd.grad(y, leaves, there.dy))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            train()
    torch.cuda.current_stream().wait_stream(side)
    control.launches()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = train()
    assert places() == {(0, "captured")}
    for seed in range(2):
        other = cases.make_problem(LARGE_SHARED, torch.bfloat16, seed=seed)
        with torch.no_grad():
            there.x.copy_(other.x)
        graph.replay()
        replayed = [tensor.cpu() for tensor in captured]
        for one, two in zip(replayed, train()):
            assert torch.equal(one, two.cpu())


def test_the_backward_runs_on_the_stream_of_the_forward(strategy: str) -> None:
    problem = cases.make_problem(SMALL)
    with torch.cuda.stream(torch.cuda.Stream()):
        there = control.moved(problem, "cuda")
        y = squeeze_excitation(there.x.requires_grad_(), *there.parameters)
    control.launches()
    (dx,) = torch.autograd.grad(y, there.x, there.dy)
    assert places() == {(0, "side")}
    torch.cuda.synchronize()
    assert torch.allclose(dx.cpu().double(), cases.truth(problem)["dx"], atol=1e-5)


def test_one_graph_over_two_devices() -> None:
    """The backward runs on autograd's threads, one for each device."""
    problem = cases.make_problem(SMALL)
    there = [control.moved(problem, device) for device in DEVICES]
    x = there[0].x.requires_grad_()
    y = squeeze_excitation(x, *there[0].parameters)
    y = squeeze_excitation(y.to("cuda:1"), *there[1].parameters)
    y.backward(there[1].dy)

    once = cases.make_problem(SMALL, torch.float64)
    inner, twice = (
        cases.make_problem(SMALL, torch.float64),
        cases.make_problem(SMALL, torch.float64),
    )
    twice.x = cases.truth(once)["y"]
    inner.dy = cases.truth(twice)["dx"]
    assert torch.allclose(x.grad.cpu().double(), cases.truth(inner)["dx"], atol=1e-5)
    assert places() == {(0, "default"), (1, "default")}


def test_threads_with_devices_and_streams_of_their_own(strategy: str) -> None:
    problem = cases.make_problem(LARGE_SHARED, torch.bfloat16)
    errors: list[BaseException] = []

    def work(device: int) -> None:
        try:
            torch.cuda.set_device(device)
            with torch.cuda.stream(torch.cuda.Stream(device)):
                for _ in range(2):
                    results = run(control.moved(problem, f"cuda:{device}"))
                    check(results, problem, f"cuda:{device}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index % 2,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def test_checkpoint_and_autocast() -> None:
    problem = cases.make_problem(SMALL)
    there = control.moved(problem, "cuda")
    x = there.x.requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        y = checkpoint(lambda x: squeeze_excitation(x, *there.parameters), x, use_reentrant=False)
    assert y.dtype == torch.float32
    y.backward(there.dy)
    assert torch.allclose(x.grad.cpu().double(), cases.truth(problem)["dx"], atol=1e-5)


def test_torch_compile() -> None:
    problem = cases.make_problem(SMALL, bias=True)
    there = control.moved(problem, "cuda:1")

    @torch.compile(backend="aot_eager", fullgraph=True)
    def layer(x: Tensor) -> Tensor:
        return squeeze_excitation(x, *there.parameters)

    x = there.x.requires_grad_()
    y = layer(x)
    y.backward(there.dy)
    truth = cases.truth(problem)
    assert torch.allclose(y.detach().cpu().double(), truth["y"], atol=1e-5)
    assert torch.allclose(x.grad.cpu().double(), truth["dx"], atol=1e-5)


def test_the_plan_is_for_the_device_of_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits into the shared memory of one device only is refused on the other."""
    monkeypatch.setenv("SEBLOCK_STRATEGY", "resident")
    for channels in range(128, 512, 32):
        problem = cases.make_problem((9, channels, (14, 14), 16), torch.bfloat16)
        there = [control.moved(problem, device) for device in DEVICES]
        assert explain(there[0].x, *there[0].parameters).strategy == "resident"
        try:
            explain(there[1].x, *there[1].parameters)
        except ValueError:
            break
    check(run(there[0]), problem, "cuda:0")
    with pytest.raises(ValueError, match="strategy resident"):
        run(there[1])
