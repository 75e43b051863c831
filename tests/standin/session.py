"""Runs tests marked `standin` in a process that has the stand-in, and reports them here.

    @pytest.mark.standin                          two pretend GPUs: build.DEVICES
    @pytest.mark.standin(STANDIN_DRIVER="12080")  the same with these variables

The stand-in has to be there when a process begins (LD_PRELOAD), so the tests of a session that ask
for the same variables run together in one other process, when the first of them is due. A test that
ends that process fails, and those after it get another one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

REPORTS = "STANDIN_REPORTS"  # the file for the reports: set in the process with the stand-in
MOST_PROCESSES = 3  # for the same variables
Settings = tuple[tuple[str, str], ...]
_results: dict[str, list[Any]] = {}  # reports by test, of the tests that have run


def inside() -> bool:
    """Whether this process has the stand-in."""
    return REPORTS in os.environ


def _settings(item: pytest.Item) -> Settings | None:
    marker = item.get_closest_marker("standin")
    return None if marker is None else tuple(sorted(marker.kwargs.items()))


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    settings = _settings(item)
    if inside() or settings is None:
        return None
    if item.nodeid not in _results:
        together = [other.nodeid for other in item.session.items if _settings(other) == settings]
        _run(item, together, dict(settings))
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _results[item.nodeid]:
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    item.session._setupstate.teardown_exact(nextitem)  # of this module, if another one is next
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if inside():
        data = item.config.hook.pytest_report_to_serializable(config=item.config, report=report)
        with open(os.environ[REPORTS], "a") as file:
            file.write(json.dumps(data) + "\n")
    return report


def _run(item: pytest.Item, tests: list[str], settings: dict[str, str]) -> None:
    """Runs the tests, and keeps their reports."""
    from tests.standin import build

    try:
        root = build.tree()
        environment = build.environment(root, **settings)
    except build.MissingTool as reason:
        path, line, _ = item.location
        skipped = (path, line or 0, f"Skipped: {reason}")
        _results.update({test: [_report(item, test, "skipped", skipped)] for test in tests})
        return
    waiting = tests
    output = ""
    for _ in range(MOST_PROCESSES):
        lines, output = run_tests(waiting, root, environment)
        reports: dict[str, list[Any]] = {}
        for line in lines:
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=line)
            if report.skipped:  # JSON has no tuples
                report.longrepr = tuple(report.longrepr)
            reports.setdefault(report.nodeid, []).append(report)
        reports = {test: all_ for test, all_ in reports.items() if all_[-1].when == "teardown"}
        _results.update(reports)
        left = [test for test in waiting if test not in reports]
        if left:  # the process has ended within the first of them, or before any
            _results[left[0]] = [_report(item, left[0], "failed", output)]
        waiting = left[1:]
        if not waiting:
            return
    late = f"not run: {MOST_PROCESSES} processes have ended before. {output}"
    _results.update({test: [_report(item, test, "failed", late)] for test in waiting})


def _report(item: pytest.Item, test: str, outcome: Any, text: Any) -> pytest.TestReport:
    location = (test.split("::")[0], None, test.partition("::")[2])
    return pytest.TestReport(test, location, {}, outcome, text, "call")


def run_tests(
    tests: list[str], root: Path, environment: dict[str, str]
) -> tuple[list[dict[str, Any]], str]:
    """Their reports, as data, as far as the process came, and what it has printed last."""
    with tempfile.TemporaryDirectory() as folder:
        names, file = Path(folder) / "tests", Path(folder) / "reports"
        names.write_text("\n".join(tests))
        file.touch()
        # sys: what is written as the process dies must not be lost in a file of pytest's
        options = ["-q", "-p", "no:cacheprovider", "--capture=sys"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-m", "", *options, f"@{names}"],
            cwd=root,
            env={**environment, REPORTS: str(file)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        reports = [json.loads(line) for line in file.read_text().splitlines()]
    words = [line for line in done.stdout.splitlines() if line.startswith("stand-in: ")]
    tail = "\n".join([*words, *done.stdout.splitlines()[-80:]])
    return reports, f"the process with the stand-in ended ({done.returncode}):\n{tail}"
