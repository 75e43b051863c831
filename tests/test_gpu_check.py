"""The GPU check, without a GPU: commands run, limits hold, verdicts say what happened."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tabulate")
pytest.importorskip("matplotlib")
pytest.importorskip("timm")

from benchmarks import gpu_check, gpu_parts, gpu_run, options
from benchmarks.gpu_parts import Command, Part
from benchmarks.record import ROOT, OpRow, read_csv
from seblock_cuda import _core

DATA = ("op.csv", "model.csv", "scaling.csv", "truth.json", "environment.json", "model.svg")


@pytest.fixture
def _in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This project's own modules are called, not started: importing torch each time takes long."""
    start = gpu_run._run

    def run(words: Sequence[str], *rest: Any) -> int:
        if words[1] != "-m" or words[2] == "pytest":
            return start(words, *rest)
        code: int = importlib.import_module(words[2]).main(words[3:])
        return code

    monkeypatch.setattr(gpu_run, "_run", run)
    monkeypatch.setenv("SEBLOCK_PLANS", "off")  # put back at the end: a command sets it
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.rehearsal
@pytest.mark.usefixtures("_in_process")
def test_every_command_runs_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    code = gpu_check.main(["--dry-run", "--work", str(tmp_path / "work")])
    shown = capsys.readouterr().out
    assert code == 0, shown
    (folder,) = (tmp_path / "work").iterdir()
    outcomes = json.loads((folder / gpu_check.STATE).read_text())
    assert list(outcomes) == list(gpu_parts.parts("9.0"))
    assert all(outcome["verdict"] == "ok" for outcome in outcomes.values())
    for name in DATA:
        assert (folder / name).exists(), name
    (archive,) = (tmp_path / "out").iterdir()
    with tarfile.open(archive) as file:
        assert f"{folder.name}/op.csv" in file.getnames()


SANITIZER = """#!/bin/sh
# In the place of compute-sanitizer, whose words for these options they are: runs the program.
while true; do
  case "$1" in
    --tool | --report-api-errors | --error-exitcode) shift 2 ;;
    --*) echo "unrecognised option '$1'"; exit 255 ;;
    *) exec "$@" ;;
  esac
done
"""


@pytest.mark.rehearsal
@pytest.mark.standin(STANDIN_L2_MEGABYTES="0,0")  # so that two sets of inputs are more than its L2
@pytest.mark.usefixtures("_in_process")
def test_every_command_runs_on_a_pretend_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As far as that goes: nothing is compiled, by torch or for torch, and nothing is timed."""
    importlib.import_module("tests.standin.via_cpu")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "compute-sanitizer").write_text(SANITIZER)
    (programs / "compute-sanitizer").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    built_for = _core.build_info()["architectures"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", ";".join(built_for))

    parts = ["build", "test", "strategies", "sanitize", "tune", "compile", "op", "plot"]
    work = ["--work", str(tmp_path / "work"), "--parts", *parts]
    code = gpu_check.main(["--dry-run", "cuda", *work])
    shown = "".join(capfd.readouterr())
    assert code == 0, shown
    (folder,) = (tmp_path / "work").iterdir()
    outcomes = json.loads((folder / gpu_check.STATE).read_text())
    assert {name: outcome["verdict"] for name, outcome in outcomes.items()} == dict.fromkeys(
        parts, "ok"
    ), shown
    assert "no work to do" in (folder / "build.log").read_text()
    assert (folder / "sanitize.log").read_text().count("cuda: 0 wrong") == 4  # and one above
    assert "left out" not in shown
    rows = read_csv(folder / "op.csv", OpRow)
    kinds = {(row.provider, row.direction, row.cache) for row in rows}
    for provider in ("fused", "fused_graph", "plain"):
        for direction in ("forward", "backward", "both"):
            assert {(provider, direction, cache) for cache in ("cold", "hot")} <= kinds
    assert all(row.strategy for row in rows if row.provider in ("fused", "fused_graph"))
    assert (folder / "op_bfloat16_both_cold.svg").exists()


def test_limits_fit() -> None:
    """Any part in 9 minutes; the whole is cut at 25."""
    known = gpu_parts.parts("9.0")
    assert list(known) == [
        "build",
        "test",
        "strategies",
        "sanitize",
        "tune",
        "truth",
        "compile",
        "op",
        "model",
        "scaling",
        "plot",
    ]
    assert all(part.seconds <= 540 for part in known.values())
    assert (ROOT / gpu_parts.STRATEGIES).is_file()
    tools = [tool for command in known["sanitize"].commands for tool in command.words]
    assert set(gpu_parts.SANITIZERS) <= set(tools)
    for command in known["sanitize"].commands[1:]:  # torch's questions to the driver are no errors
        assert "--report-api-errors no" in " ".join(command.words)
    assert known["build"].environment["TORCH_CUDA_ARCH_LIST"] == "9.0"


def part(*code: str, seconds: float = 30, **more: object) -> Part:
    commands = [Command([sys.executable, "-c", program]) for program in code]
    return replace(Part("trial", "a trial", commands, seconds), **more)  # type: ignore[arg-type]


def outcome(trial: Part, folder: Path, seconds: float = 60) -> gpu_run.Outcome:
    return gpu_run.run_part(trial, folder, time.monotonic() + seconds, None, "abc")


def test_verdicts(tmp_path: Path) -> None:
    assert outcome(part("pass"), tmp_path).verdict == "ok"
    failed = outcome(part("print('why'); raise SystemExit(7)", "pass"), tmp_path)
    assert (failed.verdict, failed.detail) == ("failed", "exit code 7: why")
    partial = outcome(part("print('3 of 9 left'); raise SystemExit(3)"), tmp_path)
    assert (partial.verdict, partial.detail) == ("partial", "3 of 9 left")


def test_what_is_missing_is_named_and_the_rest_runs(tmp_path: Path) -> None:
    missing = outcome(part("print('ran')", modules=("no_such",)), tmp_path)
    assert (missing.verdict, missing.detail) == ("missing tool", "no_such")
    assert "ran" not in (tmp_path / "trial.log").read_text()
    trial = part("print('ran')")
    trial = replace(trial, commands=[Command(["no-such-program"]), *trial.commands])
    missing = outcome(trial, tmp_path)
    assert (missing.verdict, missing.detail) == ("missing tool", "no-such-program")
    assert "ran" in (tmp_path / "trial.log").read_text()


def test_the_build_looks_for_compilers_where_setup_py_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pip's nvcc is on no PATH."""
    monkeypatch.setenv("PATH", "")
    assert gpu_run.missing_tools(gpu_parts.parts("9.0")["build"]) == []


def test_a_build_that_fails_says_why(tmp_path: Path) -> None:
    failed = outcome(
        part("print('error: no nvcc. Tried:\\n  here'); raise SystemExit(1)"), tmp_path
    )
    assert failed.detail == "exit code 1: error: no nvcc. Tried:"


def test_compiling_ahead_ends_with_its_budget(tmp_path: Path) -> None:
    """Four cases take minutes on a CPU; what is being compiled when the time is over is stopped."""
    options = "--device cpu --rows 7 23 --quick --max-mb 0.1 --jobs 1 --budget 2"
    command = Command([sys.executable, "-m", "benchmarks.precompile", *options.split()])
    ended = outcome(Part("compile", "", [command], 60), tmp_path)
    assert (ended.verdict, ended.detail) == ("partial", "0 of 4 cases compiled")


@pytest.mark.parametrize("heard", [signal.default_int_handler, signal.SIG_IGN])
def test_tests_that_are_stopped_tell_what_they_found(tmp_path: Path, heard: Any) -> None:
    """Also where a shell has started all of it in the background, deaf to interrupts."""
    before = signal.signal(signal.SIGINT, heard)
    try:
        _tests_are_stopped(tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)


def _tests_are_stopped(tmp_path: Path) -> None:
    (tmp_path / "test_slow.py").write_text(
        "import time\ndef test_fails(): assert False, 'found'\ndef test_slow(): time.sleep(60)\n"
    )
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}")
    words += ("--junitxml={results}/slow.xml", str(tmp_path / "test_slow.py"))
    command = Command([sys.executable, *words])
    stopped = outcome(Part("slow", "", [command], 6, modules=("pytest",)), tmp_path)
    assert stopped.verdict == "timed out" and "1 failures" in stopped.detail
    assert "found" in (tmp_path / "slow.log").read_text()


def test_a_part_is_stopped_with_its_children(tmp_path: Path) -> None:
    child = "import subprocess, sys; subprocess.run(['sleep', '30'])"
    start = time.monotonic()
    stopped = outcome(part(child, "pass", seconds=1), tmp_path)
    assert stopped.verdict == "timed out" and time.monotonic() - start < 10
    assert outcome(part("pass"), tmp_path, seconds=-1).verdict == "timed out"


def test_tests_that_were_all_skipped_prove_nothing(tmp_path: Path) -> None:
    report = '<testsuites><testsuite tests="3" failures="0" errors="0" skipped="{}"/></testsuites>'
    trial = part("pass", modules=("pytest",))
    (tmp_path / "trial.xml").write_text(report.format(3))
    assert outcome(trial, tmp_path).verdict == "failed"
    (tmp_path / "trial.xml").write_text(report.format(1))
    ran = outcome(trial, tmp_path)
    assert (ran.verdict, ran.detail) == ("ok", "2 passed, 0 failures, 0 errors, 1 skipped")


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for version, reason in ((None, "a build without CUDA"), ("13.0", "built for CUDA 13.0, sees")):
        monkeypatch.setattr("torch.version.cuda", version)
        assert gpu_check.main([]) == 2
        shown = capsys.readouterr().out
        assert "--dry-run" in shown and reason in shown


def test_benchmarks_run_on_the_gpu_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Left to choose, they would measure the CPU where the library cannot be used."""
    for name in ("truth", "compile", "op", "model", "scaling"):
        for command in gpu_parts.parts("9.0")[name].commands:
            words = " ".join(gpu_parts.fill(command, Path("results"), 60, None))
            assert "--device cuda" in words and "{" not in words
    monkeypatch.setattr(options, "cuda_unusable_reason", lambda: "built for 7.5")
    with pytest.raises(ValueError, match=r"--device cuda: built for 7\.5"):
        options.choose_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert options.choose_device("auto").type == "cpu"
    assert "measured on the CPU: built for 7.5" in capsys.readouterr().err


def test_folder_names() -> None:
    assert gpu_check.device_slug("NVIDIA H200") == "h200"
    assert gpu_check.device_slug("NVIDIA GeForce RTX 4090") == "rtx-4090"
