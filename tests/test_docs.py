"""The examples of docs/bring-your-model.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs/bring-your-model.md"
SECTIONS = re.findall(r"## ([^\n]+)\n(?:(?!\n## ).)*?```python\n(.*?)```", PAGE.read_text(), re.S)


for needed in ("timm", "torchvision", "transformers", "monai", "matplotlib"):
    pytest.importorskip(needed)


@pytest.mark.parametrize("code", [pytest.param(code, id=title) for title, code in SECTIONS])
def test_example(code: str) -> None:
    exec(compile(code, str(PAGE), "exec"), {"__name__": "example"})


def test_all_examples_are_found() -> None:
    assert len(SECTIONS) == PAGE.read_text().count("```python") - 1  # the first has no model
