"""Writes build.ninja."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

RULES = """\
rule cxx
  command = $cxx $flags -MMD -MF $out.d -c $in -o $out
  description = c++ $name
  depfile = $out.d
  deps = gcc
rule nvcc
  command = $nvcc $flags -MD -MF $out.d -c $in -o $out >$out.ptxas 2>&1 || $
      { cat $out.ptxas; exit 1; }; $
      grep -E -A 3 '(warning|remark)' $out.ptxas || true
  description = nvcc $name
  depfile = $out.d
  deps = gcc
rule link
  command = $cxx -shared -o $out $in $flags
  description = link $name
"""


class NinjaFile:
    """Collects build statements; paths and words are quoted for the shell and for ninja."""

    def __init__(self, folder: Path, cxx: str, nvcc: Path | None) -> None:
        self.folder = folder
        self.lines = [f"cxx = {cxx.replace('$', '$$')}"]
        if nvcc is not None:
            self.lines.append(f"nvcc = {self.words([str(nvcc)])}")
        self.lines.append(RULES)

    @staticmethod
    def words(words: list[str]) -> str:
        return " ".join(shlex.quote(word) for word in words).replace("$", "$$")

    @staticmethod
    def path(path: str | Path) -> str:
        return re.sub(r"([$ :])", r"$\1", str(path))

    def compile(self, source: Path, name: str, flags: list[str]) -> str:
        """One object of `source`; `name` tells several objects of one source apart."""
        output = f"objects/{name.replace('/', '_')}.o"
        rule = "nvcc" if source.suffix == ".cu" else "cxx"
        report = f" | {output}.ptxas" if rule == "nvcc" else ""
        self.lines += [
            f"build {output}{report}: {rule} {self.path(source)}",
            f"  flags = {self.words(flags)}",
            f"  name = {self.path(name)}",
        ]
        return output

    def link(self, output: str, objects: list[str], flags: list[str]) -> Path:
        self.lines += [
            f"build {output}: link {' '.join(objects)}",
            f"  flags = {self.words(flags)}",
            f"  name = {output}",
        ]
        return self.folder / output

    def write(self) -> None:
        write_if_changed(self.folder / "build.ninja", "\n".join(self.lines) + "\n")


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
