"""Hash files, and remember small facts between runs, like the hashes of large files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

_CHUNK: Final = 1 << 20
ALWAYS_HASHED: Final = 32 << 20
"""Files up to this many bytes are hashed at every opening; larger ones when they changed."""
_REMEMBERED: Final = 256
_HASHES: Final = "sha256"
SELF_TESTS: Final = "self-tests"
"""Under which the errors of passed self-tests are remembered."""


def sha256_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Return the sha256 of a file as lower-case hex; ``on_bytes`` hears of each chunk's size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if on_bytes:
                on_bytes(len(chunk))
    return digest.hexdigest()


def checked_sha256(path: Path) -> str:
    """Return the sha256 of a file; large ones are hashed only when they changed."""
    small = path.stat().st_size <= ALWAYS_HASHED
    return sha256_file(path) if small else remembered_sha256(path)


def remembered_sha256(path: Path) -> str:
    """Return the sha256 of a large file, hashing it only when it changed since the last time."""
    known = recall(_HASHES).get(_identity(path))
    if known is None:
        known = sha256_file(path)
        remember(_HASHES, _identity(path), known)
    return known


def remember_sha256(path: Path, digest: str) -> None:
    """Remember the hash of a large file that somebody made just now."""
    if path.stat().st_size > ALWAYS_HASHED:
        remember(_HASHES, _identity(path), digest)


def _identity(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"


def cache_folder() -> Path:
    """Return the folder of edgediffusion's caches (EDGEDIFFUSION_CACHE overrides it)."""
    if override := os.environ.get("EDGEDIFFUSION_CACHE"):
        return Path(override)
    import platformdirs

    return Path(platformdirs.user_cache_dir("edgediffusion", appauthor=False))


def recall(name: str) -> dict[str, str]:
    """Return what is remembered under ``name`` in the cache folder.

    It is a convenience: a file that cannot be read, or is damaged, holds nothing.
    """
    try:
        return msgspec.json.decode(_store(name).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}


def remember(name: str, key: str, value: str) -> None:
    """Add to what is remembered under ``name``; the oldest go. Passed over where it fails.

    Of two processes that do it at once, one may forget: what it knew is found out again.
    """
    from edgediffusion.files import write_atomically

    store = _store(name)
    known = list((recall(name) | {key: value}).items())[-_REMEMBERED:]
    with suppress(OSError):
        store.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(store, msgspec.json.encode(dict(known)))


def forget() -> None:
    """Remove all that is remembered; it is found out again when it is needed."""
    for name in (_HASHES, SELF_TESTS):
        with suppress(OSError):
            _store(name).unlink(missing_ok=True)


def _store(name: str) -> Path:
    return cache_folder() / f"{name}.json"
