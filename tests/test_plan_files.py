"""Where tuned plans are kept, and what becomes of files that are broken, old or somebody else's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from seblock_cuda import plan_files
from seblock_cuda.plan_files import Choice, Device
from seblock_cuda.plans import Problem

ROOT = Path(__file__).resolve().parent.parent
GPU = Device("Some GPU", 90, 132, 50 * 2**20)
PROBLEM = Problem(128, 256, 3136, 16, "bfloat16", "bfloat16", "nhwc", "none", "forward", True)
SPLIT = Choice("split", 4)


@pytest.fixture(autouse=True)
def nothing_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SEBLOCK_PLANS", raising=False)
    monkeypatch.delenv("SEBLOCK_STRATEGY", raising=False)
    torch.ops.seblock_cuda.forget_plans()
    yield
    torch.ops.seblock_cuda.forget_plans()


def found(problem: Problem, device: Device = GPU) -> tuple[Any, ...]:
    """What the CUDA path finds for a problem."""
    return tuple(torch.ops.seblock_cuda.tuned_plan(*device.numbers, *problem.codes()))


NOTHING = (-1, 0, 0, 0, False)


def test_kept_plans_are_used_by_a_new_process() -> None:
    path = plan_files.keep(GPU, {PROBLEM: SPLIT})
    assert path is not None and path.name == "Some-GPU-90.json"
    code = (
        "from tests.test_plan_files import PROBLEM, found\n"
        "import torch\n"
        "print(found(PROBLEM), torch.cuda.is_initialized())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "(0, 4, 0, 0, False) False", done.stderr


def test_what_is_kept_is_added_to() -> None:
    other = Problem(**{**vars(PROBLEM), "direction": "backward"})
    plan_files.keep(GPU, {PROBLEM: Choice("resident"), other: SPLIT})
    plan_files.keep(GPU, {PROBLEM: Choice("stream", 0, 5, 528)})
    plan_files.load()
    assert found(PROBLEM) == (1, 0, 5, 528, False)
    assert found(other) == (0, 4, 0, 0, False)


WRITER = """
import sys
from dataclasses import replace
from seblock_cuda import plan_files
from tests.test_plan_files import GPU, PROBLEM, SPLIT
for i in range(20):
    plan_files.keep(GPU, {replace(PROBLEM, c=8 * (2 * i + int(sys.argv[1]) + 1)): SPLIT})
"""


def test_two_processes_write_at_once() -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(which)], cwd=ROOT) for which in range(2)
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    path = plan_files.path_for(GPU)
    assert path is not None
    kept = json.loads(path.read_text())["plans"]
    assert sorted(entry["problem"]["c"] for entry in kept) == [8 * (i + 1) for i in range(40)]
    assert {file.suffix for file in path.parent.iterdir()} == {".json", ".lock"}


@pytest.mark.parametrize("what", ["version", "format"])
def test_plans_of_another_version_are_not_used(what: str) -> None:
    path = plan_files.keep(GPU, {PROBLEM: SPLIT})
    assert path is not None
    path.write_text(json.dumps({**json.loads(path.read_text()), what: "0.0.1"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan_files.load()
    assert found(PROBLEM) == NOTHING
    other = Problem(**{**vars(PROBLEM), "c": 64})
    plan_files.keep(GPU, {other: SPLIT})
    assert [entry["problem"]["c"] for entry in json.loads(path.read_text())["plans"]] == [64]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format": 1, "version": "0.1.0", "plans": 3}'],
    ids=["empty", "cut short", "a list", "nothing", "foreign"],
)
def test_a_broken_file_is_named_and_ignored(text: str) -> None:
    path = plan_files.path_for(GPU)
    assert path is not None
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.warns(UserWarning, match=r"Some-GPU-90\.json holds no plans and is ignored"):
        plan_files.load()
    plan_files.keep(GPU, {PROBLEM: SPLIT})
    plan_files.load()
    assert found(PROBLEM)[0] == 0


def test_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = tmp_path / "mine.json"
    monkeypatch.setenv("SEBLOCK_PLANS", str(named))
    plan_files.load()  # there is none yet
    assert plan_files.keep(GPU, {PROBLEM: SPLIT}) == named
    monkeypatch.setenv("SEBLOCK_PLANS", "off")
    plan_files.load()
    assert found(PROBLEM) == NOTHING and plan_files.keep(GPU, {PROBLEM: SPLIT}) is None
    monkeypatch.setenv("SEBLOCK_PLANS", str(named))
    plan_files.load()
    assert found(PROBLEM)[0] == 0


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing goes on where the user has no folder."""

    def expanded(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", expanded)
    plan_files.load()


def test_a_file_of_somebody_else_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = tmp_path / "mine.json"
    monkeypatch.setenv("SEBLOCK_PLANS", str(named))
    named.write_text('{"precious": 1}')
    with pytest.raises(OSError, match=r"mine\.json holds something else than plans"):
        plan_files.keep(GPU, {PROBLEM: SPLIT})
    assert named.read_text() == '{"precious": 1}'
    named.unlink()
    plan_files.keep(GPU, {PROBLEM: SPLIT})
    with pytest.raises(OSError, match="is of another GPU, Some GPU"):
        plan_files.keep(Device("Another", 80, 108, 40 * 2**20), {PROBLEM: SPLIT})


def test_shipped_plans_give_way_to_tuned_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_files, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setenv("SEBLOCK_PLANS", str(tmp_path / "shipped" / "some.json"))
    other = Problem(**{**vars(PROBLEM), "c": 64})
    plan_files.keep(GPU, {PROBLEM: SPLIT, other: SPLIT})
    monkeypatch.delenv("SEBLOCK_PLANS")
    plan_files.keep(GPU, {PROBLEM: Choice("resident")})
    plan_files.load()
    assert found(PROBLEM) == (2, 0, 0, 0, False) and found(other) == (0, 4, 0, 0, True)


def test_the_table_of_the_environment_is_not_asked_for_off(tmp_path: Path) -> None:
    """Importing reads nothing with SEBLOCK_PLANS=off."""
    plan_files.keep(GPU, {PROBLEM: SPLIT})
    code = "from tests.test_plan_files import PROBLEM, found\nprint(found(PROBLEM))"
    environ = {**os.environ, "SEBLOCK_PLANS": "off"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(NOTHING), done.stderr
