"""Where there are no kernels: plain PyTorch with one warning, or one clear error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from seblock_cuda import _core, _ops, explain, functional, reference, squeeze_excitation
from tests import cases


def test_the_formula_serves_where_kernels_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = cases.make_problem(cases.SHAPES["primes"], bias=True)
    leaves = [t.requires_grad_() for t in (problem.x, *problem.parameters) if t is not None]
    monkeypatch.setattr(functional, "_kernels_serve", lambda x: False)
    y = squeeze_excitation(*leaves)
    gradients = torch.autograd.grad(y, leaves, problem.dy)
    results = cases.named(y.detach(), reference.Gradients(*gradients))
    cases.check_no_worse_than_plain(results, problem)
    with pytest.raises(ValueError, match="reduce_weight must be"):
        squeeze_excitation(problem.x, problem.expand_weight, problem.expand_weight)


def test_one_warning_per_kind_of_device() -> None:
    functional._warn_about_device.cache_clear()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            functional._warn_about_device("xpu")
            functional._warn_about_device("meta")
    assert len(seen) == 1
    assert "plain PyTorch, correct but slower: there are kernels for cpu and cuda" in str(
        seen[0].message
    )


def test_without_its_library_the_layer_runs_as_plain_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    functional._warn_about_device.cache_clear()
    x, weights = torch.randn(2, 8, 3, 3), (torch.randn(2, 8), torch.randn(8, 2))
    expected = squeeze_excitation(x, *weights)
    monkeypatch.setattr(_ops, "load_error", "libseblock_cuda.so was not built")
    monkeypatch.setattr(_ops, "se_forward", None)
    with pytest.warns(UserWarning, match=r"plain PyTorch.*libseblock_cuda\.so was not") as seen:
        for _ in range(2):
            assert torch.allclose(squeeze_excitation(x, *weights), expected, atol=1e-6)
    assert len(seen) == 1
    functional._warn_about_device.cache_clear()
    with pytest.raises(RuntimeError, match=r"has no kernels: libseblock_cuda\.so was not built"):
        explain(x, *weights)  # what cannot do without


def test_import_survives_a_broken_library(tmp_path: object) -> None:
    code = (
        "import pathlib, sys, torch\n"
        "real = torch.ops.load_library\n"
        "def broken(path): raise OSError('undefined symbol: nonsense')\n"
        "torch.ops.load_library = broken\n"
        "import seblock_cuda\n"
        "x = torch.randn(1, 8, 2, 2, requires_grad=True)\n"
        "seblock_cuda.SEBlock(8, 0.5)(x).sum().backward()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "plain PyTorch" in done.stderr and "does not fit this PyTorch" in done.stderr
    assert "nonsense" in done.stderr


@pytest.mark.parametrize(
    "architecture, capability, runs",
    [
        ("9.0", (9, 0), True),
        ("8.0", (8, 6), True),
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("8.0+PTX", (9, 0), True),
        ("12.0+PTX", (9, 0), False),
        ("9.0a", (9, 0), True),
        ("9.0a", (10, 0), False),
    ],
)
def test_architectures(architecture: str, capability: tuple[int, int], runs: bool) -> None:
    assert _ops._runs_on(architecture, capability) is runs


@pytest.mark.parametrize(
    ("hip", "capability", "advice"),
    [
        ("6.4", (9, 0), "AMD GPUs are not supported; plain PyTorch runs there"),
        (None, (7, 0), "the kernels need 7.5: use_fused_se(False) runs plain PyTorch"),
        (None, (9, 9), "rebuild with TORCH_CUDA_ARCH_LIST=9.9"),
    ],
)
def test_advice_for_gpus_that_cannot_run_the_kernels(
    monkeypatch: pytest.MonkeyPatch, hip: str | None, capability: tuple[int, int], advice: str
) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_ops, "BUILT_WITH_CUDA", True)
    monkeypatch.setattr(_core, "build_info", lambda: {"architectures": ["9.0a"]})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    fake = SimpleNamespace(cuda_problem=lambda: "")
    monkeypatch.setattr(torch, "ops", SimpleNamespace(seblock_cuda=fake))
    assert advice in (_ops.cuda_unusable_reason() or "")


def test_a_source_folder_that_hides_an_installed_copy(tmp_path: Path) -> None:
    """As `pip install .` and then python in the same folder: the copy that has the library."""
    source = Path(_ops.LIBRARY).parent
    for name in ("checkout", "site"):
        ignored = shutil.ignore_patterns("*.so" if name == "checkout" else "", "__pycache__")
        shutil.copytree(source, tmp_path / name / "seblock_cuda", ignore=ignored)
    metadata = tmp_path / "site/seblock_cuda-0.1.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: seblock_cuda\nVersion: 0.1\n")
    code = "import seblock_cuda._ops; print(seblock_cuda._ops.load_error)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    for folder, hidden in (("checkout", True), ("site", False)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path / folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert (done.stdout.strip() != "None") == hidden
        if hidden:
            assert f"is installed in {tmp_path / 'site/seblock_cuda'} has it" in done.stdout
            assert "start it in another folder, or build here (`make build`)" in done.stdout
