"""Lock files that say which process is alive: the system frees them when it ends, however."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from filelock import FileLock


class Claim:
    """A lock file that only its maker holds, until it is released or its process ends.

    Raises OSError where the file cannot be made or another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(path, timeout=0, thread_local=False)
        self._lock.acquire()  # filelock's Timeout is an OSError

    def release(self) -> None:
        """Give the claim up; twice is fine, and so is another thread."""
        self._lock.release()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def is_held(path: Path) -> bool:
    """Tell whether a process, maybe this one, holds the claim at ``path``; else remove it."""
    try:
        claim = Claim(path)
    except OSError:
        return True
    claim.release()
    return False
