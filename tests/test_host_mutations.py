"""The host path broken on purpose, and the tests under the stand-in that go red."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.standin import build, session

SHARED = "if (shared_bytes > kSharedWithoutAsking) allow_shared_memory(name, kernel);"
MEMSET = "cudaMemsetAsync(counters, 0, bytes, static_cast<cudaStream_t>(stream))"
LAUNCH = "check(name, cudaLaunchKernelExC(&config, kernel, arguments));"
ONCE = "if (allowed.count({kernel, device})) return;"
OUT_OF_MEMORY = '" out of memory. Could not allocate "'


pytestmark = pytest.mark.mutants


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str  # in csrc
    old: str  # occurs once
    new: str
    test: str  # of test_host_path.py or test_host_failures.py: goes red
    message: str = ""  # a part of what it says
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def unit(self) -> str:
        """The file that is compiled again."""
        return "ops.cpp" if "cuda/" not in self.file else self.file


PATH, FAILURES = "tests/test_host_path.py::test_", "tests/test_host_failures.py::test_"
EXACT = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
MUTANTS = [
    Mutant(
        "the symbol of the stream has another name",
        "ops.cpp",
        '"aoti_torch_get_current_cuda_stream"',
        '"aoti_torch_get_current_gpu_stream"',
        FAILURES + "a_machine_that_can",
        "this torch has no aoti_torch_get_current_gpu_stream",
    ),
    Mutant(
        "no device guard",
        "ops.cpp",
        "const torch::stable::accelerator::DeviceGuard guard(device);",
        "",
        PATH + "values[split-torch.float32-nchw-None-cuda:1]",
        "for device 0",
        EXACT,
    ),
    Mutant(
        "the default stream",
        "ops.cpp",
        "launcher(params, chosen, stream(x));",
        "launcher(params, chosen, nullptr);",
        PATH + "a_side_stream[split-cuda:0]",
        "'default'",
    ),
    Mutant(
        "the stream of device 0",
        "ops.cpp",
        "current_stream()(x.get_device_index(), &stream)",
        "current_stream()(0, &stream)",
        PATH + "a_side_stream[split-cuda:1]",
        "",
    ),
    Mutant(
        "the limits of device 0",
        "ops.cpp",
        "cuda::limits_of(device)",
        "cuda::limits_of(0)",
        PATH + "the_plan_is_for_the_device_of_the_tensor",
        "bytes of shared memory, of which it may have",
    ),
    Mutant(
        "a workspace on the host",
        "ops.cpp",
        "params.workspace = workspace.mutable_data_ptr();\n    launcher",
        "params.workspace = malloc(1 << 20);\n    launcher",
        PATH + "values[split-torch.float32-nchw-None-cuda:0]",
        "of host memory",
        EXACT,
    ),
    Mutant(
        "a workspace too small",
        "ops.cpp",
        "CpuBackend::bytes(chosen.workspace.bytes(), x)",
        "CpuBackend::bytes(chosen.workspace.bytes() / 2, x)",
        PATH + "values[split-torch.float32-nchw-None-cuda:0]",
        "stand-in: ",  # a kernel touched ...
        EXACT,
    ),
    Mutant(
        "out of memory is not said",
        "tensors.h",
        OUT_OF_MEMORY,
        '" no memory: "',
        FAILURES + "out_of_memory[backward]",
        "no memory: ",
    ),
    Mutant(
        "no opt-in to shared memory",
        "cuda/runtime.cu",
        SHARED,
        "",
        PATH + "shared_memory_beyond_48_KiB_on_both_devices[resident]",
        "of which it may have 49152 on device 0",
    ),
    Mutant(
        "opt-in on one device only",
        "cuda/runtime.cu",
        "check(name, cudaGetDevice(&device));",
        "",
        PATH + "shared_memory_beyond_48_KiB_on_both_devices[resident]",
        "of which it may have 49152 on device 1",
    ),
    Mutant(
        "opt-in at every launch",
        "cuda/runtime.cu",
        ONCE,
        "",
        PATH + "shared_memory_beyond_48_KiB_on_both_devices[resident]",
        "stream='attribute'",
    ),
    Mutant(
        "counters zeroed on the default stream",
        "cuda/runtime.cu",
        MEMSET,
        "cudaMemsetAsync(counters, 0, bytes, nullptr)",
        PATH + "a_side_stream[stream-cuda:0]",
        "'default'",
    ),
    Mutant(
        "counters zeroed by a call that no graph takes",
        "cuda/runtime.cu",
        MEMSET,
        "cudaMemset(counters, 0, bytes)",
        PATH + "capture_and_replay[stream]",
        "",
    ),
    Mutant(
        "a wait after the launch",
        "cuda/runtime.cu",
        LAUNCH,
        LAUNCH + " cudaStreamSynchronize(static_cast<cudaStream_t>(stream));",
        PATH + "the_op_waits_for_nothing[split]",
        "pending",
    ),
    Mutant(
        "an error left behind",
        "cuda/runtime.cu",
        "  cudaGetLastError();  // forgets",
        "  // forgets",
        FAILURES + "a_refused_launch_is_named_and_forgotten[cudaLaunchKernelExC]",
        "last_error()",
    ),
    Mutant(
        "the last error taken for the launch's own",
        "cuda/runtime.cu",
        LAUNCH,
        "(void)cudaLaunchKernelExC(&config, kernel, arguments); check(name, cudaGetLastError());",
        FAILURES + "the_last_error_of_somebody_else_stays_theirs",
        "cudaSetDevice(99)",
    ),
    Mutant(
        "the failure of earlier work taken for the launch's own",
        "cuda/runtime.cu",
        "is_of_earlier_work(error)\n",
        "false\n",
        FAILURES + "earlier_work_that_failed_is_not_called_ours[719]",
        "Regex pattern did not match",
    ),
    Mutant(
        "a driver too old goes unnoticed",
        "cuda/device_check.cu",
        "driver / 1000 >= runtime / 1000",
        "driver >= 1000",
        FAILURES + "a_driver_too_old",
        "",
        (("STANDIN_DRIVER", "12080"),),
    ),
]


def tree_of(mutant: Mutant) -> Path:
    """A copy of the checkout whose op library has this fault."""
    name = "mutants/" + mutant.name.replace(" ", "-").replace("'", "")
    folder = build.FOLDER / "sources" / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(build.ROOT / "csrc", folder)
    text = (folder / mutant.file).read_text()
    assert text.count(mutant.old) == 1, f"{mutant.file} has changed, so must the mutant"
    (folder / mutant.file).write_text(text.replace(mutant.old, mutant.new))
    made_by_setup = mutant.unit.replace("/", "_") + ".o"
    target = folder / made_by_setup
    command = build.compile_command(made_by_setup)
    command = [word.replace(str(build.ROOT / "csrc"), str(folder)) for word in command]
    command += ["-O0", "-w", "-c", str(folder / mutant.unit), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return build.tree(name, {made_by_setup: target})


@pytest.fixture(scope="module")
def trees(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Path]]]:
    """Builds the selected mutants, while others run."""
    try:
        build.environment()
    except build.MissingTool as reason:
        pytest.skip(str(reason))
    selected = [item.callspec.params["mutant"] for item in request.session.items
                if item.path == request.path and hasattr(item, "callspec")]  # fmt: skip
    with ThreadPoolExecutor(1) as pool:
        yield {mutant.name: pool.submit(tree_of, mutant) for mutant in selected}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_test_goes_red(trees: dict[str, Future[Path]], mutant: Mutant) -> None:
    root = trees[mutant.name].result()
    environment = build.environment(root, **dict(mutant.settings))
    reports, output = session.run_tests([mutant.test], root, environment)
    failed = [report for report in reports if report["outcome"] == "failed"]
    whole = [report for report in reports if report["when"] == "teardown"]
    assert failed or not whole, "the test saw nothing"
    assert mutant.message in str(failed) + output
