"""Write files so that a reader sees the old content or the new, never a part of it."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path``, flush it to the disk, and rename it into place.

    Raises OSError; the temporary file is then gone and an older ``path`` untouched.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _open_to_others(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk. Raises OSError."""
    if path.is_dir():
        if os.name != "posix":  # Windows has no such thing for folders
            return
        handle = os.open(path, os.O_RDONLY)
    else:
        handle = os.open(path, os.O_RDWR)  # Windows flushes only what was opened for writing
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _open_to_others(path: Path) -> None:
    """Give a file the mode that ``open`` would have given it (mkstemp's is private)."""
    if os.name == "posix":
        mask = os.umask(0)
        os.umask(mask)
        path.chmod(0o666 & ~mask)


def bare_name(file: str) -> str:
    """The name of a file without its folder, whichever system's separators it was written with."""
    return re.split(r"[\\/]", file)[-1]
