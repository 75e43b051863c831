"""Fixtures and hooks: devices, threads, precision, the SIMT harness, the stand-in for CUDA."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from benchmarks.precision import full_float32
from seblock_cuda import _ops
from tests.standin.session import pytest_runtest_makereport as pytest_runtest_makereport
from tests.standin.session import pytest_runtest_protocol as pytest_runtest_protocol


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Each device with kernels; a visible skip where a GPU cannot run them."""
    name: str = request.param
    if name == "cuda" and (reason := _ops.cuda_unusable_reason()):
        pytest.skip(reason)
    return name


@pytest.fixture(scope="session", autouse=True)
def _full_float32() -> Iterator[None]:
    """What is compared in float32 is float32 on a GPU too."""
    with full_float32():
        yield


@pytest.fixture(scope="session", autouse=True)
def _only_the_rule() -> None:
    """What was tuned on this machine does not count, in processes that the tests start neither."""
    os.environ["SEBLOCK_PLANS"] = "off"
    if _ops.load_error is None:
        torch.ops.seblock_cuda.forget_plans()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For small networks: on a busy machine their threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def simt() -> ModuleType:
    """The CUDA kernels' own source, compiled for the SIMT harness."""
    from tests.simt import build, kernels

    try:
        path = build.build_kernels()
    except build.MissingTool as reason:
        pytest.skip(str(reason))
    return kernels.load(path)
