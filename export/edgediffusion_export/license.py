"""The licence of a checkpoint, as the checkpoint states it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

UNKNOWN: Final = "unknown"
KNOWN_TEXTS: Final = {
    "Apache License": "Apache-2.0",
    "MIT License": "MIT",
    "CreativeML Open RAIL-M": "creativeml-openrail-m",
}
"""Words of a licence's text to its name."""


def find_license(folder: Path, index: dict[str, Any]) -> str:
    """Read the licence from the model card's front matter, the index or a LICENSE file."""
    card = folder / "README.md"
    found = _front_matter(card.read_text("utf-8", "replace")) if card.is_file() else None
    if found:
        return found
    if isinstance(index.get("license"), str):
        return str(index["license"])
    for path in sorted(folder.glob("LICENSE*")):
        if path.is_file():
            text = path.read_text("utf-8", "replace")
            known = (name for words, name in KNOWN_TEXTS.items() if words in text)
            return next(known, f"see {path.name}")
    return UNKNOWN


def _front_matter(card: str) -> str | None:
    """The licence in the YAML block at the head of a model card."""
    head = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    line = head and re.search(r"^license:\s*[\"']?([\w.+-]+)", head[1], re.MULTILINE)
    return line[1] if line else None
