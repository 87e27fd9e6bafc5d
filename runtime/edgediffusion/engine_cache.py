"""Compiled engines on disk, so that the second start of a program is a fast one.

An entry is a folder named after the fingerprint of all that the engine depends on. It is built in
a folder of its own and renamed into place once everything in it is on the disk. ``entry.json``
lists its files with size and sha256, and nothing is handed out that does not match: libraries
trust what they compiled once, and may crash on a damaged file.

Locks of the operating system say who is alive: they go with their process, however it ends. A
build that nobody holds is swept away; an entry that somebody holds is in use and stays.
"""

from __future__ import annotations

import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from filelock import FileLock

from edgediffusion.byte_sizes import parse_bytes, say_bytes
from edgediffusion.claims import Claim, is_held
from edgediffusion.errors import EngineError
from edgediffusion.files import flush_to_disk, write_atomically
from edgediffusion.fingerprint import fingerprint
from edgediffusion.hashing import cache_folder, checked_sha256, remember_sha256, sha256_file
from edgediffusion.manifest import FileSpec

SCHEMA: Final = "edgediffusion-engine/1"
LIMIT_VARIABLE: Final = "EDGEDIFFUSION_CACHE_LIMIT"
DEFAULT_LIMIT: Final = "20 GiB"
_ENTRY: Final = "entry.json"
_PATIENCE: Final = 30.0
"""Seconds to wait for another process that marks, renames or removes an entry."""

_warned: set[str] = set()

Loaded = TypeVar("Loaded")


class EntryFile(msgspec.Struct, frozen=True):
    """``entry.json``: what an entry is for and what it consists of."""

    schema: str
    label: str
    facts: dict[str, str]
    files: dict[str, FileSpec]


@dataclass(frozen=True)
class Entry:
    """A finished entry. ``used`` is the time of its last use, in seconds since 1970."""

    folder: Path
    label: str
    device: str
    size: int
    used: float


@dataclass(frozen=True)
class Lease:
    """An intact entry, which nobody removes before ``release``."""

    folder: Path
    release: Callable[[], None]


@dataclass(frozen=True)
class EngineCache:
    """The compiled engines in ``folder``, ``limit`` bytes of them at most; 0 switches it off."""

    folder: Path
    limit: int

    def find(self, facts: Mapping[str, str]) -> Lease | None:
        """Return the entry for ``facts`` if there is an intact one; a damaged one is removed."""
        folder = self.folder / fingerprint(facts)
        if not self.limit or not folder.is_dir():
            return None
        lease = self._lease(folder)
        if _is_intact(folder):
            with suppress(OSError):
                os.utime(folder / _ENTRY)
            return lease
        lease.release()
        self.discard(facts)
        return None

    def discard(self, facts: Mapping[str, str]) -> None:
        """Remove the entry for ``facts``; one that cannot be removed stays and is never used."""
        with suppress(OSError), self._locked():
            self._remove(self.folder / fingerprint(facts))

    @contextmanager
    def building(self, facts: Mapping[str, str], label: str) -> Iterator[Path | None]:
        """Give a folder to compile into, which becomes the entry when the block ends well.

        Gives None where the cache is off or cannot be used, which is said once in a warning.
        """
        build = self._begin() if self.limit else None
        if build is None:
            yield None
            return
        try:
            yield build.folder
            self._publish(build.folder, facts, label)
        finally:
            shutil.rmtree(build.folder, ignore_errors=True)
            build.release()

    def entries(self) -> list[Entry]:
        """Return the finished entries, the one that was used last at the end."""
        found = []
        for folder in self.folder.glob("*/"):
            with suppress(FileNotFoundError):  # another process removed it just now
                if entry := _read_entry(folder):
                    size = sum(spec.size for spec in entry.files.values())
                    used = (folder / _ENTRY).stat().st_mtime
                    device = entry.facts.get("device", "")
                    found.append(Entry(folder, entry.label, device, size, used))
        return sorted(found, key=lambda entry: entry.used)

    def clear(self) -> list[Entry]:
        """Remove all entries and what killed builds left; return those that are in use and stay.

        Raises OSError where the folder cannot be written.
        """
        if self.folder.is_dir():
            with self._locked():
                self._sweep()
                for folder in list(self.folder.glob("*/")):
                    if not self._is_held(folder):
                        self._remove(folder)
        return self.entries()

    def _lease(self, folder: Path) -> Lease:
        try:
            with self._locked():
                claim = Claim(self._claim_path(folder))
        except OSError:  # nobody can remove anything from a folder that cannot be written
            return Lease(folder, nothing)
        return Lease(folder, claim.release)

    def _begin(self) -> Lease | None:
        """Make a folder to build in, which this process holds."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._sweep()
                folder = self.folder / f"{secrets.token_hex(8)}.build"
                claim = Claim(self._claim_path(folder))
                folder.mkdir()
        except OSError as error:
            _warn_unusable(self.folder, error)
            return None
        return Lease(folder, claim.release)

    def _publish(self, build: Path, facts: Mapping[str, str], label: str) -> None:
        """Turn a finished build into an entry; where that fails, the program goes on without."""
        try:
            files = _describe(build)
            if self._has_room_for(files, label):
                entry = EntryFile(SCHEMA, label, dict(facts), files)
                write_atomically(build / _ENTRY, msgspec.json.encode(entry))
                flush_to_disk(build)
                self._move_into_place(build, self.folder / fingerprint(facts), files)
        except OSError as error:
            _warn_unusable(self.folder, error)

    def _has_room_for(self, files: Mapping[str, FileSpec], label: str) -> bool:
        size = sum(spec.size for spec in files.values())
        if size > self.limit:
            _warn(
                label,
                f"the compiled {label} takes {say_bytes(size)}, {LIMIT_VARIABLE} allows "
                f"{say_bytes(self.limit)}: it is compiled anew at each start",
            )
        return size <= self.limit

    def _move_into_place(self, build: Path, final: Path, files: Mapping[str, FileSpec]) -> None:
        with self._locked():
            if _read_entry(final):  # another process was faster
                return
            self._remove(final)
            build.replace(final)
            flush_to_disk(self.folder)
            for name, spec in files.items():
                remember_sha256(final / name, spec.sha256)
            self._evict(final)

    def _evict(self, newest: Path) -> None:
        """Remove what was not used for longest until the rest is within the limit."""
        entries = self.entries()
        size = sum(entry.size for entry in entries)
        for entry in entries:
            if size > self.limit and entry.folder != newest and not self._is_held(entry.folder):
                self._remove(entry.folder)
                size -= entry.size

    def _sweep(self) -> None:
        """Remove what processes left that are no more: claims, unfinished builds, trash."""
        for claim in self.folder.glob("*.claim"):
            is_held(claim)
        for folder in [*self.folder.glob("*.build"), *self.folder.glob("*.trash")]:
            if not self._is_held(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def _remove(self, folder: Path) -> None:
        """Remove an entry at once for all who look; on Windows a mapped file keeps it in place."""
        with suppress(OSError):
            trash = self.folder / f"{secrets.token_hex(8)}.trash"
            folder.replace(trash)
            shutil.rmtree(trash, ignore_errors=True)

    def _is_held(self, folder: Path) -> bool:
        return any([is_held(claim) for claim in self.folder.glob(f"{folder.name}.*.claim")])

    def _claim_path(self, folder: Path) -> Path:
        return self.folder / f"{folder.name}.{secrets.token_hex(8)}.claim"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the one lock under which claims are made and entries appear and disappear."""
        with FileLock(self.folder / ".lock", timeout=_PATIENCE, thread_local=False):
            yield


def engine_cache() -> EngineCache:
    """Return the engine cache of this user. Raises RequestError for a limit that makes no sense."""
    limit = os.environ.get(LIMIT_VARIABLE) or DEFAULT_LIMIT
    return EngineCache(cache_folder() / "engines", parse_bytes(limit, LIMIT_VARIABLE))


def load_or_build(
    cache: EngineCache,
    facts: Mapping[str, str],
    label: str,
    load: Callable[[Path], Loaded],
    build: Callable[[Path | None], Loaded],
) -> tuple[Loaded, Callable[[], None]]:
    """Load a compiled engine from the cache, or build it there; return it and what to call at last.

    ``build`` gets the folder to leave files in for ``load``, or None. Where it fails with a folder
    and not without (a full disk), the engine is used without a cache. Raises what ``build`` raises.
    """
    if kept := load_kept(cache, facts, load):
        return kept
    try:
        with cache.building(facts, label) as folder:
            return build(folder), nothing
    except EngineError as error:
        if folder is None:
            raise
        failure = error
    built = build(None)
    _warn_unusable(cache.folder, failure)
    return built, nothing


def load_kept(
    cache: EngineCache, facts: Mapping[str, str], load: Callable[[Path], Loaded]
) -> tuple[Loaded, Callable[[], None]] | None:
    """Load a compiled engine from the cache; None where there is none that ``load`` takes."""
    lease = cache.find(facts)
    if lease is None:
        return None
    try:
        return load(lease.folder), lease.release
    except EngineError:  # intact, and still the library will not have it
        lease.release()
        cache.discard(facts)
        return None
    except BaseException:
        lease.release()
        raise


def _read_entry(folder: Path) -> EntryFile | None:
    """Return what an entry says about itself, if it is one for its own name."""
    try:
        entry = msgspec.json.decode((folder / _ENTRY).read_bytes(), type=EntryFile)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    is_own = entry.schema == SCHEMA and fingerprint(entry.facts) == folder.name
    return entry if is_own else None


def _is_intact(folder: Path) -> bool:
    entry = _read_entry(folder)
    try:
        return (
            entry is not None
            and {path.name for path in folder.iterdir()} == {*entry.files, _ENTRY}
            and all(_matches(folder / name, spec) for name, spec in entry.files.items())
        )
    except OSError:
        return False


def _describe(build: Path) -> dict[str, FileSpec]:
    """Return size and hash of the files of a build, once they are on the disk."""
    files = {}
    for path in sorted(build.iterdir()):
        flush_to_disk(path)
        files[path.name] = FileSpec(size=path.stat().st_size, sha256=sha256_file(path))
    return files


def _matches(path: Path, spec: FileSpec) -> bool:
    if path.is_symlink() or path.stat().st_size != spec.size:
        return False
    return checked_sha256(path) == spec.sha256


def _warn_unusable(folder: Path, error: Exception) -> None:
    _warn(
        str(folder),
        f"the engine cache in {folder} cannot be used ({error}): engines are compiled anew at each "
        "start. Free some space there, or set EDGEDIFFUSION_CACHE to a folder of your own",
    )


def _warn(about: str, message: str) -> None:
    """Warn once in a process: the program goes on, but its starts stay slow."""
    if about not in _warned:
        _warned.add(about)
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def nothing() -> None:
    """What there is to release where nothing is held."""
