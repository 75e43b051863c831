"""Runs one part of the GPU check: in time, whatever its commands do, and judges it."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu_parts import Part, fill
from benchmarks.record import ROOT

# where programs are if PATH does not say: in a system's toolkit, or pip's
TOOLKIT = [
    *map(Path, ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")),
    *sorted(Path(torch.__file__).parents[1].glob("nvidia/cu*/bin"), reverse=True),
]
MARGIN = 45.0  # seconds that a benchmark gets for the case it is in when its budget ends
INCOMPLETE = 3  # the exit code of a benchmark whose budget ended
VERDICTS = ("ok", "partial", "missing tool", "timed out", "failed")  # from good to bad
TAIL = 15  # lines of a log to show of a part that is not ok
GRACE = 10.0  # seconds that a command gets to end by itself when it is interrupted


@dataclass(frozen=True)
class Outcome:
    """What became of a part: a verdict, and why."""

    verdict: str
    detail: str
    seconds: float
    commit: str | None

    def is_ok(self, commit: str | None) -> bool:
        return self.verdict == "ok" and self.commit == commit


def missing_tools(part: Part, dry_run: str | None = None) -> list[str]:
    """The programs and Python packages that a part needs and that are not here.

    A dry run needs fewer packages: those that it misses will say so themselves.
    """
    programs = dict.fromkeys(command.words[0] for command in part.commands)
    modules = () if dry_run else part.modules
    return [name for name in programs if shutil.which(name, path=_path()) is None] + [
        name for name in modules if importlib.util.find_spec(name) is None
    ]


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), *map(str, TOOLKIT)])


def run_part(
    part: Part, folder: Path, deadline: float, dry_run: str | None, commit: str | None
) -> Outcome:
    """Runs all commands of a part, one after the other, to its limit or the deadline.

    A command whose program is not here is left out; in a dry run, on "cpu" or "cuda", that is ok.
    """
    print(f"== {part.name}: {part.about}", flush=True)
    start = time.monotonic()
    end = min(start + part.seconds, deadline)
    environment = {**os.environ, **part.environment, "PYTHONUNBUFFERED": "1"}
    environment |= os.environ if dry_run else {}  # so that nothing is built anew for it
    environment |= {"PATH": _path(), **({"SEBLOCK_COMMIT": commit} if commit else {})}
    log = folder / f"{part.name}.log"
    log.write_text("")
    missing = missing_tools(part, dry_run)
    judged = [("missing tool", ", ".join(missing)) if missing and not dry_run else ("ok", "")]
    for index, command in enumerate(part.commands):
        if dry_run == "cpu" and command.on_gpu:
            continue
        if set(missing) & {command.words[0], *part.modules}:
            print(f"left out: {shlex.join(command.words)}", flush=True)
            continue
        left = end - time.monotonic()
        if left <= 0:
            judged.append(("timed out", "before its last command"))
            break
        if part.equal_shares:
            left /= len(part.commands) - index
        words = fill(command, folder, left - MARGIN, dry_run)
        judged.append(_judge(_run(words, left, environment, log), log))
    verdict = max((verdict for verdict, _ in judged), key=VERDICTS.index)
    details = dict.fromkeys(detail for kind, detail in judged if kind == verdict and detail)
    if "pytest" in part.modules and not dry_run:
        verdict, details = _judge_tests(folder / f"{part.name}.xml", verdict, details)
    if verdict != "ok":
        print("\n".join(log.read_text(errors="replace").splitlines()[-TAIL:]), flush=True)
    seconds = round(time.monotonic() - start, 1)
    print(f"== {part.name}: {verdict}, {seconds} s", flush=True)
    return Outcome(verdict, "; ".join(details), seconds, commit)


def _run(words: Sequence[str], seconds: float, environment: Mapping[str, str], log: Path) -> int:
    """The exit code; -9 of a command that was stopped, with its children.

    It is interrupted first: pytest then reports what it has found so far.
    """
    print(f"$ {shlex.join(words)}", flush=True)
    with log.open("a") as file:
        print(f"$ {shlex.join(words)}", file=file, flush=True)
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
            # a shell makes what it starts in the background deaf to interrupts, children included
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GRACE)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return -signal.SIGKILL


def _judge(code: int, log: Path) -> tuple[str, str]:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if code == 0:
        return "ok", ""
    if code == INCOMPLETE:
        return "partial", lines[-1]
    if code == -signal.SIGKILL:
        return "timed out", ""
    errors = [line for line in lines if line.startswith("error:")]
    return "failed", f"exit code {code}: {(errors or lines)[-1].strip()}"


def _judge_tests(
    report: Path, verdict: str, details: Mapping[str, None]
) -> tuple[str, Mapping[str, None]]:
    """Counts; a run in which no test ran proves nothing."""
    if not report.exists():
        return verdict, details
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    told = f"{passed} passed, " + ", ".join(f"{counts[name]} {name}" for name in list(counts)[1:])
    return ("failed" if verdict == "ok" and passed == 0 else verdict), {told: None}
