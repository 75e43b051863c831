"""The pages: their examples run as they stand, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = ("README.md", "docs/bring-your-model.md", "docs/use.md")
SECTIONS = re.compile(r"\n## ([^\n]+)\n|```python\n(.*?)```", re.S)


def examples(page: str) -> list[pytest.ParameterSet]:
    """The code of a page, named after its section."""
    section, found = "", []
    for title, code in SECTIONS.findall((ROOT / page).read_text()):
        section = title or section
        if code and section:  # before the first section there is no model
            found.append(pytest.param(code, id=f"{Path(page).stem}: {section} {len(found)}"))
    return found


@pytest.mark.parametrize("code", [example for page in RUN for example in examples(page)])
def test_example(code: str) -> None:
    for needed in ("timm", "torchvision", "transformers", "monai", "matplotlib"):
        pytest.importorskip(needed)
    exec(compile(code, "example", "exec"), {"__name__": "example"})


def test_every_public_name_has_an_example() -> None:
    import seblock_cuda

    shown = "".join(code.values[0] for page in RUN for code in examples(page))
    missing = [name for name in seblock_cuda.__all__ if not re.search(rf"\b{name}\b", shown)]
    assert not missing


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text()), target
