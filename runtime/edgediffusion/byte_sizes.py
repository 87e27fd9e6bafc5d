"""Numbers of bytes as people write them."""

from __future__ import annotations

import re
from typing import Final

from edgediffusion.errors import RequestError

_UNITS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_bytes(text: str, name: str) -> int:
    """Read a size like ``500MB``, ``20 GiB`` or ``0``; ``name`` is what a RequestError is about."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]+)?)\s*([KMGT]?)(I?)B?", text.strip().upper())
    if not match:
        raise RequestError(f"{name} {text!r} is not a size such as 500MB, 20GiB or 0")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _UNITS[match[2]])


def say_bytes(size: int) -> str:
    """Write a size in MiB or GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
