"""The commands of README.md, so that CI and the tests run what a reader would type.

A shell block is one that starts with three backticks and ``sh``. The words behind ``sh`` name it:
``sh tests`` is the block that installs and runs the tests. ``python tests/readme.py --print NAME``
prints a block; without the standard library nothing is needed.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```(sh|python) *([\w-]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its name (may be empty) and its text."""

    language: str
    name: str
    text: str


def blocks(path: Path) -> list[Block]:
    """All shell and Python blocks of a Markdown file, in order."""
    return [Block(*match) for match in _BLOCK.findall(path.read_text(encoding="utf-8"))]


def block(path: Path, name: str) -> Block:
    """The block of that name; there must be exactly one."""
    (found,) = (each for each in blocks(path) if each.name == name)
    return found


if __name__ == "__main__":
    _, _, wanted = sys.argv
    sys.stdout.write(block(ROOT / "README.md", wanted).text)
