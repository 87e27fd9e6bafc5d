from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from filelock import FileLock

from edgediffusion import Bundle
from edgediffusion.errors import OutputError
from edgediffusion.manifest import Manifest
from edgediffusion.manifest_file import read_manifest
from edgediffusion_export import bundle as bundle_module
from edgediffusion_export.bundle import Staging, staged

MEMORY = Path("/dev/shm")
KILLER = Path(__file__).with_name("killer.py")


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that flushes at once, where there is one: thousands of flushes."""
    if not (MEMORY.is_dir() and os.access(MEMORY, os.W_OK)):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


def refill(staging: Staging, source: Path, name: str) -> Manifest:
    """Write the files of a bundle again, under another name."""
    manifest = read_manifest(source)
    for relative in manifest.files:
        staging.write(relative, [(source / relative).read_bytes()])
    return msgspec.structs.replace(manifest, name=name)


def make(source: Path, target: Path, name: str, force: bool = False) -> None:
    with staged(target, force=force) as staging:
        staging.finish(refill(staging, source, name))


def leftovers(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if path != target)


def test_a_bundle_is_made_and_nothing_else(tiny_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "b"
    make(tiny_bundle, target, "new")
    assert Bundle.open(target).manifest.name == "new"
    assert leftovers(target) == []


def test_an_empty_folder_may_be_filled(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    make(tiny_bundle, tmp_path / "b", "new")
    assert Bundle.open(tmp_path / "b").manifest.name == "new"


def test_an_existing_bundle_stays_without_force(tiny_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "b"
    make(tiny_bundle, target, "old")
    with pytest.raises(OutputError, match="b exists already: pass --force to replace it"):
        make(tiny_bundle, target, "new")
    assert Bundle.open(target).manifest.name == "old"
    assert leftovers(target) == []


@pytest.mark.parametrize("exchange", [True, False])
def test_force_replaces_a_bundle(
    tiny_bundle: Path, tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(bundle_module, "_exchange", lambda *_: False)
    target = tmp_path / "b"
    make(tiny_bundle, target, "old")
    make(tiny_bundle, target, "new", force=True)
    assert Bundle.open(target).manifest.name == "new"
    assert leftovers(target) == []


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2")
def test_linux_exchanges_folders_in_one_step(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert bundle_module._exchange(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "one" / "other").exists()
    assert (tmp_path / "other" / "one").exists()
    with pytest.raises(FileNotFoundError):
        bundle_module._exchange(tmp_path / "one", tmp_path / "none")


def test_a_link_to_a_bundle_stays_a_link(tiny_bundle: Path, tmp_path: Path) -> None:
    make(tiny_bundle, tmp_path / "b", "old")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    make(tiny_bundle, tmp_path / "link", "new", force=True)
    assert (tmp_path / "link").is_symlink()
    assert Bundle.open(tmp_path / "b").manifest.name == "new"


@pytest.mark.parametrize("name", ["thesis.txt", "deep/thesis.txt", "link"])
def test_force_spares_what_is_no_bundle(tmp_path: Path, name: str) -> None:
    path = tmp_path / "b" / name
    path.parent.mkdir(parents=True)
    if name == "link":
        path.symlink_to(tmp_path)
    else:
        path.write_text("years of work")
    with pytest.raises(OutputError, match=rf"b is not a bundle .* it holds {name}: move"):
        make(tmp_path, tmp_path / "b", "new", force=True)
    assert path.exists()


def test_force_spares_files_that_a_bundle_does_not_list(tiny_bundle: Path, tmp_path: Path) -> None:
    make(tiny_bundle, tmp_path / "b", "old")
    (tmp_path / "b" / "a.txt").write_text("mine")
    (tmp_path / "b" / "b.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"it holds a\.txt and 1 more: move these files away"):
        make(tiny_bundle, tmp_path / "b", "new", force=True)


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("mine")
    with pytest.raises(OutputError, match="b is a file, a bundle is a folder: choose another"):
        make(tmp_path, tmp_path / "b", "new", force=True)


def test_the_parent_must_exist(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the folder .*none does not exist, create it first"):
        make(tmp_path, tmp_path / "none" / "b", "new")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("at", ["os.fsync", "os.rename"])
def test_a_failing_disk_leaves_nothing_behind(
    tiny_bundle: Path, tmp_path: Path, number: int, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    target = tmp_path / "b"
    monkeypatch.setattr(at, fail)
    with pytest.raises(OutputError, match=rf"b cannot be written: {os.strerror(number)}\. Nothing"):
        make(tiny_bundle, target, "new")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_fix(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "b"
    make(tiny_bundle, target, "old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device.*free some space"):
        make(tiny_bundle, target, "new", force=True)
    assert Bundle.open(target).manifest.name == "old"
    assert leftovers(target) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_export_leaves_nothing_behind(
    tiny_bundle: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    def interrupted() -> None:
        with staged(tmp_path / "b") as staging:
            refill(staging, tiny_bundle, "new")
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_running_export_is_left_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "b"
    with staged(target) as staging:
        manifest = refill(staging, tiny_bundle, "first")
        with pytest.raises(OutputError, match=r"another export to .*b is running: wait for it"):
            make(tiny_bundle, target, "second")
        staging.finish(manifest)
    assert Bundle.open(target).manifest.name == "first"


def test_an_unlocked_leftover_is_removed(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / ".b.exporting" / "bundle" / "unet").mkdir(parents=True)
    (tmp_path / ".b.exporting" / "lock").touch()
    make(tiny_bundle, tmp_path / "b", "new")
    assert leftovers(tmp_path / "b") == []


def test_an_old_bundle_that_stepped_aside_comes_back(tiny_bundle: Path, tmp_path: Path) -> None:
    """Where folders cannot be exchanged, a machine may die between two renames."""
    target = tmp_path / "b"
    make(tiny_bundle, target, "old")
    (tmp_path / ".b.exporting").mkdir()
    target.rename(tmp_path / ".b.exporting" / "old")
    with pytest.raises(OutputError, match="exists already"):
        make(tiny_bundle, target, "new")
    assert Bundle.open(target).manifest.name == "old"
    assert leftovers(target) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("case", ["new", "replace", "replace-by-renames"])
def test_killed_at_any_moment(tiny_bundle: Path, in_memory: Path, case: str) -> None:
    """SIGKILL before every step on the file system: old or new, complete, and cleaned up."""
    done = subprocess.run(
        [sys.executable, str(KILLER), str(tiny_bundle), str(in_memory), case],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kills"] >= 20
    assert report["faults"] == []
    wanted = {"new": {"nothing", "new"}, "replace": {"old", "new"}}
    assert set(report["seen"]) == wanted.get(case, {"old", "new"})


def test_the_lock_is_free_after_an_export(tiny_bundle: Path, tmp_path: Path) -> None:
    make(tiny_bundle, tmp_path / "b", "new")
    with FileLock(tmp_path / "lock").acquire(timeout=0):
        make(tiny_bundle, tmp_path / "b", "newer", force=True)
