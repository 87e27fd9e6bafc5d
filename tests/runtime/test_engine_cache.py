"""The engine cache with engines that the tests make up: faults, neighbours, limits."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgediffusion import engine_cache as module
from edgediffusion import hashing
from edgediffusion.engine_cache import EngineCache, load_or_build
from edgediffusion.errors import EngineError, RequestError
from edgediffusion.fingerprint import fingerprint

FACTS = {"content": "a", "device": "test"}
OTHER = {"content": "b", "device": "test"}
THIRD = {"content": "c", "device": "test"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    monkeypatch.setenv("EDGEDIFFUSION_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "_warned", set())
    return EngineCache(tmp_path / "engines", limit=1 << 20)


def add(cache: EngineCache, facts: dict[str, str], content: bytes = b"compiled") -> Path:
    """Build an entry and return its folder."""
    with cache.building(facts, "a graph") as folder:
        assert folder is not None
        (folder / "blob").write_bytes(content)
        (folder / "graph").write_bytes(b"refers to the blob")
    return cache.folder / fingerprint(facts)


def leftovers(cache: EngineCache) -> list[str]:
    """Everything in the cache's folder but finished entries and the lock."""
    entries = {entry.folder.name for entry in cache.entries()}
    return sorted(p.name for p in cache.folder.iterdir() if p.name not in entries | {".lock"})


def test_what_was_built_is_found_again(cache: EngineCache) -> None:
    assert cache.find(FACTS) is None
    folder = add(cache, FACTS)
    lease = cache.find(dict(reversed(FACTS.items())))
    assert lease is not None
    assert lease.folder == folder
    assert (lease.folder / "blob").read_bytes() == b"compiled"
    assert cache.find(OTHER) is None
    lease.release()
    assert leftovers(cache) == []


def test_nothing_is_found_before_the_build_has_ended(cache: EngineCache) -> None:
    with cache.building(FACTS, "a graph") as folder:
        assert folder is not None
        (folder / "blob").write_bytes(b"compiled")
        assert cache.find(FACTS) is None
        assert cache.entries() == []
    assert cache.find(FACTS) is not None


def test_a_build_that_fails_leaves_nothing(cache: EngineCache) -> None:
    def half(folder: Path | None) -> None:
        assert folder is not None
        (folder / "blob").write_bytes(b"half")
        raise OSError("no way")

    with pytest.raises(OSError, match="no way"):
        load_or_build(cache, FACTS, "a graph", str, half)
    assert cache.find(FACTS) is None
    assert leftovers(cache) == []


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "blob").read_bytes())
    data[3] ^= 1
    (folder / "blob").write_bytes(data)


def rewrite(folder: Path, **changes: Any) -> None:
    entry = msgspec.json.decode((folder / "entry.json").read_bytes())
    (folder / "entry.json").write_bytes(msgspec.json.encode(entry | changes))


def link_elsewhere(folder: Path) -> None:
    (folder / "blob").rename(folder.parent / "elsewhere")
    (folder / "blob").symlink_to(folder.parent / "elsewhere")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped bit": flip_a_bit,
    "truncated": lambda folder: os.truncate(folder / "blob", 3),
    "empty": lambda folder: os.truncate(folder / "blob", 0),
    "missing": lambda folder: (folder / "blob").unlink(),
    "a folder": lambda folder: ((folder / "blob").unlink(), (folder / "blob").mkdir()),
    "one more file": lambda folder: (folder / "more").touch(),
    "no entry.json": lambda folder: (folder / "entry.json").unlink(),
    "truncated entry.json": lambda folder: os.truncate(folder / "entry.json", 20),
    "junk entry.json": lambda folder: (folder / "entry.json").write_bytes(b"\xff"),
    "list as entry.json": lambda folder: (folder / "entry.json").write_bytes(b"[]"),
    "other schema": lambda folder: rewrite(folder, schema="edgediffusion-engine/0"),
    "facts of another": lambda folder: rewrite(folder, facts=OTHER),
    "file outside": lambda folder: rewrite(folder, files={"../blob": {"size": 1, "sha256": "a"}}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_removed_and_built_again(
    cache: EngineCache, damage: Callable[[Path], object]
) -> None:
    folder = add(cache, FACTS)
    damage(folder)
    assert cache.find(FACTS) is None
    assert not folder.exists()
    add(cache, FACTS)
    assert cache.find(FACTS) is not None


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_a_link_is_no_file_of_an_entry(cache: EngineCache) -> None:
    link_elsewhere(add(cache, FACTS))
    assert cache.find(FACTS) is None


def test_an_entry_under_another_name_is_foreign(cache: EngineCache) -> None:
    add(cache, FACTS).rename(cache.folder / fingerprint(OTHER))
    assert cache.find(OTHER) is None
    assert cache.entries() == []


def test_large_files_are_hashed_again_only_when_they_changed(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "ALWAYS_HASHED", 0)
    folder = add(cache, FACTS)
    hashed: list[Path] = []
    honest = hashing.sha256_file
    monkeypatch.setattr(hashing, "sha256_file", lambda p: hashed.append(p) or honest(p))
    assert cache.find(FACTS) is not None
    assert hashed == []
    flip_a_bit(folder)
    assert cache.find(FACTS) is None
    assert [path.name for path in hashed] == ["blob"]


CHILD = """
import sys, time
sys.path[:] = {path!r}
from pathlib import Path
from edgediffusion.engine_cache import EngineCache, load_or_build
cache = EngineCache(Path({folder!r}), 1 << 20)
facts = {facts!r}
{code}
"""


def child(cache: EngineCache, code: str) -> subprocess.Popen[str]:
    script = CHILD.format(path=sys.path, folder=str(cache.folder), facts=FACTS, code=code)
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", script], stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def builder(cache: EngineCache) -> Iterator[subprocess.Popen[str]]:
    """Another process, half-way through a build."""
    code = """
with cache.building(facts, "a graph") as folder:
    (folder / "blob").write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(600)
"""
    process = child(cache, code)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def test_a_killed_build_is_never_found_and_swept_by_the_next(
    cache: EngineCache, builder: subprocess.Popen[str]
) -> None:
    add(cache, OTHER)
    assert len(leftovers(cache)) == 2, "a living build and its claim stay"
    builder.kill()
    builder.wait()
    assert cache.find(FACTS) is None
    add(cache, THIRD)
    assert leftovers(cache) == []
    add(cache, FACTS)
    assert cache.find(FACTS) is not None


@pytest.fixture
def reader(cache: EngineCache) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses an entry."""
    add(cache, FACTS)
    process = child(cache, "lease = cache.find(facts)\nprint(lease, flush=True)\ntime.sleep(600)")
    assert process.stdout is not None
    assert "Lease" in process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_an_entry_in_use_by_another_process_stays_until_that_ends(
    cache: EngineCache, reader: subprocess.Popen[str]
) -> None:
    add(cache, OTHER)
    assert [entry.folder.name for entry in cache.clear()] == [fingerprint(FACTS)]
    reader.kill()
    reader.wait()
    assert cache.clear() == []
    assert leftovers(cache) == []


def test_processes_that_build_the_same_at_once_end_with_one_entry(cache: EngineCache) -> None:
    code = """
def build(folder):
    if folder:
        (folder / "blob").write_bytes(b"compiled")
        time.sleep(0.3)
    return "built"
load = lambda folder: (folder / "blob").read_bytes().decode()
for _ in range(5):
    value, release = load_or_build(cache, facts, "a graph", load, build)
    assert value in ("built", "compiled"), value
    release()
print("done")
"""
    processes = [child(cache, code) for _ in range(3)]
    for process in processes:
        assert process.communicate() == ("done\n", "")
    assert len(cache.entries()) == 1
    assert leftovers(cache) == []


def test_another_processs_entry_keeps_its_own_hashes(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "ALWAYS_HASHED", 0)  # as if it were large
    with cache.building(FACTS, "a graph") as folder:
        assert folder is not None
        (folder / "blob").write_bytes(b"compiled")
        add(cache, FACTS, b"faster  ")
    lease = cache.find(FACTS)
    assert lease is not None
    assert (lease.folder / "blob").read_bytes() == b"faster  "


def test_a_release_from_another_thread_counts_and_twice_is_fine(cache: EngineCache) -> None:
    add(cache, FACTS)
    lease = cache.find(FACTS)
    assert lease is not None
    thread = threading.Thread(target=lease.release)
    thread.start()
    thread.join()
    lease.release()
    assert cache.clear() == []


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["flush_to_disk", "write_atomically"])
def test_a_full_disk_costs_the_entry_and_says_so_once(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(module, name, no_space)
    with pytest.warns(RuntimeWarning, match=r"cannot be used .*No space left.* Free some space"):
        add(cache, FACTS)
    add(cache, FACTS)  # a second warning would be an error here
    assert cache.find(FACTS) is None
    assert leftovers(cache) == []


def test_a_library_that_cannot_write_compiles_once_more_without(cache: EngineCache) -> None:
    built: list[Path | None] = []

    def build(folder: Path | None) -> str:
        built.append(folder)
        if folder is not None:
            (folder / "blob").write_bytes(b"half")
            raise EngineError("failed to write the blob")
        return "built"

    with pytest.warns(RuntimeWarning, match="cannot be used .failed to write the blob"):
        assert load_or_build(cache, FACTS, "a graph", Path.exists, build)[0] == "built"
    assert [folder is None for folder in built] == [False, True]
    assert leftovers(cache) == []


def test_a_graph_that_does_not_compile_is_not_the_caches_fault(cache: EngineCache) -> None:
    def build(folder: Path | None) -> str:
        raise EngineError("no such operator")

    with pytest.raises(EngineError, match="no such operator"):
        load_or_build(cache, FACTS, "a graph", str, build)
    assert leftovers(cache) == []


def test_what_the_library_refuses_is_built_again(cache: EngineCache) -> None:
    add(cache, FACTS, b"old")

    def load(folder: Path) -> bytes:
        raise EngineError("made by another version")

    def build(folder: Path | None) -> bytes:
        assert folder is not None
        (folder / "blob").write_bytes(b"new")
        return b"new"

    assert load_or_build(cache, FACTS, "a graph", load, build)[0] == b"new"
    lease = cache.find(FACTS)
    assert lease is not None
    assert (lease.folder / "blob").read_bytes() == b"new"


def test_a_cache_that_is_no_folder_is_said_once(cache: EngineCache, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    odd = EngineCache(tmp_path / "file" / "engines", cache.limit)
    assert odd.find(FACTS) is None
    with pytest.warns(RuntimeWarning, match="set EDGEDIFFUSION_CACHE to a folder of your own"):
        assert load_or_build(odd, FACTS, "a graph", str, lambda folder: str(folder))[0] == "None"
    assert load_or_build(odd, FACTS, "a graph", str, lambda folder: str(folder))[0] == "None"
    assert odd.entries() == odd.clear() == []


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such rights on folders")
def test_a_read_only_cache_is_read_and_nothing_is_built_there() -> None:
    with tempfile.TemporaryDirectory() as home:  # pytest's own folder is closed to others
        Path(home).chmod(0o755)
        cache = EngineCache(Path(home) / "engines", 1 << 20)
        add(cache, FACTS)
        code = """
import os, warnings
if os.getuid() == 0:
    os.setuid(65534)  # root may write everywhere
warnings.simplefilter("always")
build = lambda folder: "built without" if folder is None else "built"
for asked in (facts, {"content": "new"}, {"content": "newer"}):
    print(load_or_build(cache, asked, "a graph", lambda folder: folder.name, build)[0])
print(cache.find(facts) is not None)
"""
        for path in (cache.folder, *cache.folder.iterdir()):
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            out, err = child(cache, code).communicate()
        finally:
            for path in (cache.folder, *cache.folder.iterdir()):
                path.chmod(0o755)
    without = "built without"
    assert out.splitlines() == [fingerprint(FACTS), without, without, "True"], err
    assert err.count("cannot be used ([Errno 13] Permission denied") == 1


def age(cache: EngineCache, *oldest_first: dict[str, str]) -> None:
    """Set the times of last use."""
    for hours, facts in enumerate(reversed(oldest_first)):
        moment = time.time() - 3600 * (hours + 1)
        os.utime(cache.folder / fingerprint(facts) / "entry.json", (moment, moment))


def keys(cache: EngineCache) -> list[str]:
    return sorted(entry.folder.name for entry in cache.entries())


def test_the_least_recently_used_goes_first(cache: EngineCache) -> None:
    small = EngineCache(cache.folder, limit=2500)
    add(small, FACTS, bytes(1000))
    add(small, OTHER, bytes(1000))
    age(small, FACTS, OTHER)
    lease = small.find(FACTS)  # which makes it the newest
    assert lease is not None
    lease.release()
    add(small, THIRD, bytes(1000))
    assert keys(small) == sorted(map(fingerprint, (FACTS, THIRD)))


def test_what_is_in_use_is_never_evicted(cache: EngineCache) -> None:
    small = EngineCache(cache.folder, limit=2500)
    for facts in (FACTS, OTHER):
        add(small, facts, bytes(1000))
    lease = small.find(FACTS)
    age(small, FACTS, OTHER)
    add(small, THIRD, bytes(1000))
    assert keys(small) == sorted(map(fingerprint, (FACTS, THIRD)))
    assert lease is not None
    lease.release()


def test_an_engine_beyond_the_limit_is_not_kept(cache: EngineCache) -> None:
    small = EngineCache(cache.folder, limit=2500)
    add(small, FACTS, bytes(1000))
    with pytest.warns(RuntimeWarning, match=r"a graph takes .* EDGEDIFFUSION_CACHE_LIMIT allows"):
        add(small, OTHER, bytes(3000))
    assert keys(small) == [fingerprint(FACTS)]
    assert leftovers(small) == []


def test_a_limit_of_zero_switches_the_cache_off(cache: EngineCache) -> None:
    add(cache, FACTS)
    off = EngineCache(cache.folder, limit=0)
    assert off.find(FACTS) is None
    with off.building(OTHER, "a graph") as folder:
        assert folder is None


def test_what_windows_holds_mapped_is_left_in_peace(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = add(cache, FACTS)
    flip_a_bit(folder)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "The process cannot access the file")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        assert cache.find(FACTS) is None
        assert cache.clear() != []
    shutil.rmtree(folder)


def test_the_limit_is_20_gib_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("EDGEDIFFUSION_CACHE_LIMIT", raising=False)
    assert module.engine_cache().limit == 20 << 30
    monkeypatch.setenv("EDGEDIFFUSION_CACHE_LIMIT", "500MB")
    assert module.engine_cache().limit == 500_000_000
    monkeypatch.setenv("EDGEDIFFUSION_CACHE_LIMIT", "many")
    with pytest.raises(RequestError, match="EDGEDIFFUSION_CACHE_LIMIT 'many' is not a size such"):
        module.engine_cache()
