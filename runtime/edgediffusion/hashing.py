"""Hash files, and remember the hashes of large ones by path, size, time and inode."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

_CHUNK = 1 << 20
_REMEMBERED = 256


def sha256_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Return the sha256 of a file as lower-case hex; ``on_bytes`` hears of each chunk's size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if on_bytes:
                on_bytes(len(chunk))
    return digest.hexdigest()


def remembered_sha256(path: Path) -> str:
    """Return the sha256 of a large file, hashing it only when it changed since the last time.

    The cache is a convenience: one that cannot be read or written is passed over in silence.
    """
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
    store = _store_path()
    known = _read(store)
    if key not in known:
        known[key] = sha256_file(path)
        _write(store, dict(list(known.items())[-_REMEMBERED:]))
    return known[key]


def cache_folder() -> Path:
    """Return the folder of edgediffusion's caches (EDGEDIFFUSION_CACHE overrides it)."""
    if override := os.environ.get("EDGEDIFFUSION_CACHE"):
        return Path(override)
    import platformdirs

    return Path(platformdirs.user_cache_dir("edgediffusion", appauthor=False))


def _store_path() -> Path:
    return cache_folder() / "sha256.json"


def _read(store: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode(store.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}


def _write(store: Path, known: dict[str, str]) -> None:
    from edgediffusion.files import write_atomically

    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(store, msgspec.json.encode(known))
    except OSError:
        return
