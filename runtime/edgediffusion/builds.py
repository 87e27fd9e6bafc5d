"""A name for each build of an engine, kept beside it, so that a proof is of that build alone.

Compilers that choose kernels by timing them may choose others the next time. The name is drawn at
random: an engine of gigabytes need not be hashed to know it again.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

from edgediffusion.errors import EngineError

_FILE: Final = "build"


def keep_build(folder: Path, name: str, content: bytes | memoryview) -> str:
    """Leave a build in ``folder`` as the file ``name``; return its own name. Raises EngineError."""
    build = secrets.token_hex(16)
    try:
        (folder / name).write_bytes(content)
        (folder / _FILE).write_text(build, encoding="ascii")
    except OSError as error:
        raise EngineError(f"{folder} cannot be written: {error}") from error
    return build


def read_build(folder: Path) -> str:
    """Return the name of the build in ``folder``. Raises EngineError where it has none."""
    try:
        return (folder / _FILE).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"the build in {folder} has no name: {error}") from error
