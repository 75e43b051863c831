"""What a release still needs: `make release-check`, after `make wheel`.

    python -m build_tools.release_check dist/*.whl

Prints a line for each thing that is missing; exit code 1 if there is any.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from email.message import Message
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
URLS = ("Homepage", "Documentation", "Source", "Issues", "Changelog")


def missing(version: str, metadata: Message, names: Sequence[str], root: Path) -> list[str]:
    """What a release of `version` needs and does not have.

    Args:
        version: of the package itself, `seblock_cuda.__version__`.
        metadata: of the wheel.
        names: the wheels' file names.
        root: the checkout.
    """
    found = []
    if metadata["Version"] != version:
        found.append(f"version: pyproject.toml says {metadata['Version']}, the package {version}")
    if re.search(r"\.dev|\+", version):
        found.append(f"version: {version} is not one of a release")
    changelog = (root / "CHANGELOG.md").read_text()
    if not re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", changelog, re.M):
        found.append(f"changelog: no section '## {version} (yyyy-mm-dd)' in CHANGELOG.md")
    tags = _git(root, "tag", "--points-at", "HEAD").split()
    if f"v{version}" not in tags:
        found.append(f"tag: this commit has no tag v{version}")
    if _git(root, "status", "--porcelain"):
        found.append("tag: the checkout has changes that are not committed")
    urls = {value.partition(",")[0] for value in metadata.get_all("Project-URL", [])}
    for name in URLS:
        if name not in urls:
            found.append(f"metadata: no url {name} in pyproject.toml ([project.urls])")
    for name in ("Author", "Summary", "License", "Keywords", "Requires-Python"):
        if not (metadata[name] or metadata[f"{name}-Expression"] or metadata[f"{name}-email"]):
            found.append(f"metadata: no {name}")
    links = re.findall(r"\]\(([^)\s]+)\)", str(metadata.get_payload()))
    relative = [link for link in links if not link.startswith(("http", "#"))]
    if relative:
        found.append(
            f"long description: {len(relative)} links lead nowhere outside the checkout, the first "
            f"is {relative[0]}"
        )
    found += [f"wheel: {name} is not a manylinux one" for name in names if "manylinux" not in name]
    if not names:
        found.append("wheel: none, run make wheel")
    return found


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def metadata_of(wheel: Path) -> Message:
    """Of a wheel: name, version, urls, and the long description as its payload."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def main(wheels: Sequence[str]) -> int:
    """Returns 1 if something is missing."""
    package = (ROOT / "seblock_cuda/__init__.py").read_text()
    version = re.findall(r'^__version__ = "(.+)"', package, re.M)[0]
    metadata = metadata_of(Path(wheels[0])) if wheels else Message()
    found = missing(version, metadata, [Path(wheel).name for wheel in wheels], ROOT)
    print("\n".join(found) or f"{version} can be released")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
