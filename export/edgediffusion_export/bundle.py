"""Write a bundle so that a complete old one or a complete new one is there at every moment.

Everything is written to ``.NAME.exporting/bundle`` beside the target, on the same file system::

    .NAME.exporting/lock      held while the export runs; a killed one leaves it unlocked
    .NAME.exporting/bundle/   the new bundle, its manifest written last, all flushed to the disk
    .NAME.exporting/old/      the old bundle, for an instant, where folders cannot be exchanged

A new target is one rename. An old one is exchanged with the new in one step where the system can
(Linux's renameat2, macOS's renamex_np). Elsewhere (Windows, some network file systems) the old
bundle steps aside and the new one comes in: two renames, and a machine that dies between them
leaves the old bundle in ``.NAME.exporting/old``, from where the next export puts it back. The next
export to the same target also removes what a killed one left.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

from filelock import BaseFileLock, FileLock, Timeout

from edgediffusion.errors import OutputError
from edgediffusion.manifest import FileSpec, Manifest
from edgediffusion.manifest_file import MANIFEST_NAME, dump_manifest

_ATTEMPTS: Final = 5
_LOCK: Final = "lock"
_NEW: Final = "bundle"
_OLD: Final = "old"
_HERE: Final = -100  # AT_FDCWD
_RENAME_EXCHANGE: Final = 2  # linux/fs.h
_RENAME_SWAP: Final = 2  # sys/stdio.h of macOS
_CANNOT_EXCHANGE: Final = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


class Staging:
    """A bundle in the making: files go in, the manifest last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, FileSpec] = {}

    def write(self, relative: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Write one file, flush it to the disk, and remember its size and hash."""
        path = self.folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, size = sha256(), 0
        with path.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                size += memoryview(chunk).nbytes
            file.flush()
            os.fsync(file.fileno())
        self.files[relative] = FileSpec(size, digest.hexdigest())

    def remove(self, relative: str) -> None:
        """Remove a file."""
        (self.folder / relative).unlink()
        del self.files[relative]

    def discard(self, folder: str) -> None:
        """Remove the files of a folder, which are then made anew."""
        for relative in [name for name in self.files if name.startswith(f"{folder}/")]:
            self.remove(relative)

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest, which makes the folder a bundle."""
        path = self.folder / MANIFEST_NAME
        with path.open("xb") as file:
            file.write(dump_manifest(manifest))
            file.flush()
            os.fsync(file.fileno())
        for folder, _, _ in os.walk(self.folder):
            _flush_folder(Path(folder))


@contextmanager
def staged(target: Path, *, force: bool = False) -> Iterator[Staging]:
    """Give a folder to write a bundle to, and put it in the target's place when all went well.

    On an error, and on Ctrl-C, nothing is left behind and an old target is untouched. Raises
    OutputError.
    """
    target = target.resolve()
    aside = target.with_name(f".{target.name}.exporting")
    try:
        with _workplace(aside, target):
            _check_target(target, force)
            staging = Staging(aside / _NEW)
            staging.folder.mkdir()
            yield staging
            _check_target(target, force)
            _swap_in(staging.folder, target, aside / _OLD)
    except OSError as error:
        raise OutputError(_say(target, error)) from error


@contextmanager
def _workplace(aside: Path, target: Path) -> Iterator[None]:
    """Hold the folder beside the target, and remove it at the end."""
    if not target.parent.is_dir():
        raise OutputError(
            f"{target} cannot be written: the folder {target.parent} does not exist, create it "
            "first"
        )
    lock = _hold(aside, target)
    try:
        _recover(aside, target)
        yield
    finally:
        if os.name == "nt":  # an open file cannot be removed there
            lock.release()
        shutil.rmtree(aside, ignore_errors=True)
        lock.release()


def _hold(aside: Path, target: Path) -> BaseFileLock:
    """Lock the folder beside the target, so that no other export takes it for a leftover."""
    for _ in range(_ATTEMPTS):
        aside.mkdir(exist_ok=True)
        lock = FileLock(aside / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            break
        except FileNotFoundError:  # removed by the export that held it until now
            continue
        if (aside / _LOCK).exists():
            return lock
        lock.release()
    raise OutputError(
        f"another export to {target} is running: wait for it, or choose another output"
    )


def _recover(aside: Path, target: Path) -> None:
    """Undo what a killed export left: put an old bundle back, remove the rest."""
    if (aside / _OLD).is_dir() and not target.exists():
        os.rename(aside / _OLD, target)
    for name in (_NEW, _OLD):
        if (aside / name).exists():
            shutil.rmtree(aside / name)


def _check_target(target: Path, force: bool) -> None:
    """Refuse to replace anything but a bundle, and that only with --force."""
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputError(f"{target} is a file, a bundle is a folder: choose another output")
    if not any(target.iterdir()):
        return
    if not force:
        raise OutputError(f"{target} exists already: pass --force to replace it")
    strangers = sorted(_strangers(target))
    if strangers:
        raise OutputError(
            f"{target} is not a bundle that an export may replace, it holds {strangers[0]}"
            f"{f' and {len(strangers) - 1} more' if len(strangers) > 1 else ''}: move these files "
            "away or choose another output"
        )


def _strangers(target: Path) -> set[str]:
    """The files below ``target`` that its manifest does not list."""
    found = {p.relative_to(target).as_posix() for p in target.rglob("*") if not _is_folder(p)}
    try:
        listed = json.loads((target / MANIFEST_NAME).read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return found
    return found - set(listed) - {MANIFEST_NAME}


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _swap_in(new: Path, target: Path, old: Path) -> None:
    """Put the new bundle in the target's place."""
    if target.exists() and any(target.iterdir()):
        if not _exchange(new, target):
            os.rename(target, old)
            os.rename(new, target)
    else:
        if target.exists():
            target.rmdir()
        os.rename(new, target)
    _flush_folder(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or file system cannot."""
    call = _exchange_call()
    if call is None or call(os.fsencode(one), os.fsencode(other)) == 0:
        return call is not None
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _exchange_call() -> Callable[[bytes, bytes], int] | None:
    """The system's call that exchanges two paths, or None."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            swap = library.renamex_np
            return lambda one, other: int(swap(one, other, _RENAME_SWAP))
        rename = library.renameat2
        return lambda one, other: int(rename(_HERE, one, _HERE, other, _RENAME_EXCHANGE))
    except (AttributeError, OSError, TypeError):  # no such call, no C library by that name
        return None


def _flush_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where folders can be opened (not on Windows)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _say(target: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    fix = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the folder"
    return f"{target} cannot be written: {reason}. Nothing was left behind; {fix} or choose another"
