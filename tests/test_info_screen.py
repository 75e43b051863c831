"""`python -m seblock_cuda`."""

from __future__ import annotations

import pytest
import torch

import seblock_cuda
from seblock_cuda import __main__ as screen
from seblock_cuda import _core, _ops


def test_says_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    screen.main()
    text = capsys.readouterr().out
    info = _core.build_info()
    for expected in (seblock_cuda.__version__, torch.__version__, info["torch_version"]):
        assert expected in text
    assert info["architectures"] == [] or " ".join(info["architectures"]) in text
    assert _ops.cpu_capability() in text
    assert len(text.splitlines()) < 40
    assert max(len(line) for line in text.splitlines()) < 200


def test_says_why_the_cuda_kernels_cannot_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ops, "cuda_unusable_reason", lambda device=0: "the moon is full: wait")
    screen.main()
    assert "the moon is full: wait" in capsys.readouterr().out


def test_a_library_that_does_not_load_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ops, "load_error", "undefined symbol")
    screen.main()
    text = capsys.readouterr().out
    assert "undefined symbol" in text
    assert "What to do" in text


@pytest.mark.skipif(
    torch.version.cuda is None or not _core.build_info()["cuda"],
    reason="needs a CUDA build of torch, and of this package",
)
def test_the_library_has_found_all_that_it_needs_of_this_torch() -> None:
    """Also without a GPU: the current stream is found by name, for it cannot be linked."""
    assert torch.ops.seblock_cuda.cuda_problem() == ""
