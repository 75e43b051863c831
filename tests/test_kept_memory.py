"""Large tensors on the CPU live in memory that is kept for the next one of their size
(csrc/cpu/kept_memory.h).
"""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from seblock_cuda import squeeze_excitation

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="memory is kept on Linux only"),
    pytest.mark.skipif(
        torch.__version__ < "2.11", reason="torch 2.10 cannot take a block of memory as a tensor"
    ),
]

ROOT = Path(__file__).resolve().parent.parent


def layer(x: Tensor) -> Tensor:
    c = x.shape[1]
    return squeeze_excitation(x, torch.full((1, c), 0.5), torch.full((c, 1), 0.5))


def test_freed_memory_serves_the_next_result() -> None:
    x = torch.randn(4, 64, 56, 56)
    first, second = layer(x), layer(x + 1)
    expected = first.clone()
    assert first.data_ptr() != second.data_ptr()
    freed = second.data_ptr()
    del second
    third = layer(x + 2)
    assert third.data_ptr() == freed
    assert torch.equal(first, expected)


def test_any_thread_may_free() -> None:
    x = torch.randn(4, 64, 56, 56)
    results = [layer(x)]
    freed = results[0].data_ptr()
    worker = threading.Thread(target=results.clear)
    worker.start()
    worker.join()
    assert layer(x).data_ptr() == freed


def test_threads_get_memory_of_their_own() -> None:
    inputs = [torch.full((4, 64, 56, 56), float(i)) for i in range(4)]
    expected = [layer(x) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        wrong.extend(i for _ in range(20) if not torch.equal(layer(inputs[i]), expected[i]))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_result_is_a_tensor_like_any_other() -> None:
    x = torch.randn(4, 64, 56, 56)
    y = layer(x)
    expected = y.clone()
    stored = io.BytesIO()
    torch.save(y, stored)
    stored.seek(0)
    assert torch.equal(torch.load(stored), expected)
    assert torch.equal(copy.deepcopy(y), expected)
    view = y.flatten(1)[:, 5:]
    del y
    layer(x + 1)  # does not get the memory that the view still holds
    assert torch.equal(view, expected.flatten(1)[:, 5:])
    shared = layer(x).share_memory_()
    assert shared.is_shared() and torch.equal(shared, expected)
    assert torch.equal(layer(x).add_(1), expected + 1)


BOUND = """
import torch
from tests.test_kept_memory import layer

def taken():  # megabytes of address space
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * 4096 / 1e6

torch.set_num_threads(1)  # a thread takes address space too
inputs = [torch.randn(n, 64, 100, 100) for n in (4, 8, 12, 16)]  # 10 to 41 MB
layer(torch.randn(4, 64, 8, 8))
before = taken()
for x in inputs + inputs:
    layer(x)
print(taken() - before)
"""


def test_what_is_kept_is_no_more_than_was_in_use_at_one_time() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BOUND], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 30 < float(done.stdout) < 60  # all sizes together would be 102


def lazily_freed_mb() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(float(line.split()[1]) / 1e3 for line in lines if line.startswith("LazyFree:"))


def test_the_system_may_take_back_what_is_kept() -> None:
    x = torch.randn(4, 64, 100, 100)
    y = layer(x)
    before = lazily_freed_mb()
    del y
    assert lazily_freed_mb() - before > 9  # of 10.24


@pytest.mark.parametrize("keep", ["0", "1"])
def test_the_switch(keep: str) -> None:
    """Without kept memory a result is a tensor of torch's allocator, which can be resized."""
    code = (
        "import torch, seblock_cuda\n"
        "y = seblock_cuda.SEBlock(64, 1 / 4)(torch.randn(8, 64, 64, 32)).detach()\n"
        "try:\n"
        "    print(y.untyped_storage().resize_(0).nbytes())\n"
        "except RuntimeError as error:\n"
        "    print('refused:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SEBLOCK_KEEP_MEMORY": keep},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("refused:" if keep == "1" else "0\n")
