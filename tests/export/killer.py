"""Kill an export before each of its steps on the file system, and look at what is there.

    python killer.py SOURCE_BUNDLE FOLDER new|replace|replace-by-renames

Every attempt is a fork that kills itself with SIGKILL at its n-th audit event that touches the
file system. Prints {"kills", "faults", "seen"} as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import msgspec

from edgediffusion.errors import EdgeDiffusionError
from edgediffusion.hashing import sha256_file
from edgediffusion.manifest import Manifest
from edgediffusion.manifest_file import read_manifest
from edgediffusion_export import bundle as bundle_module
from edgediffusion_export.bundle import staged

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "ctypes.dlsym")


def make(source: Path, target: Path, name: str, force: bool) -> None:
    manifest = read_manifest(source)
    with staged(target, force=force) as staging:
        for relative in manifest.files:
            staging.write(relative, [(source / relative).read_bytes()])
        staging.finish(msgspec.structs.replace(manifest, name=name))


def killed(number: int, source: Path, target: Path, force: bool) -> bool:
    """Run an export that dies at its ``number``-th event; False if it got to its end."""
    child = os.fork()
    if child == 0:
        left = number

        def count(event: str, _: object) -> None:
            nonlocal left
            if event in EVENTS:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        make(source, target, "new", force)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def state(target: Path) -> str:
    """The name of the bundle that is there, complete to the last byte."""
    if not target.exists():
        return "nothing"
    manifest: Manifest = read_manifest(target)
    for relative, file in manifest.files.items():
        assert sha256_file(target / relative) == file.sha256, f"{relative} is damaged"
    return manifest.name


def main() -> None:
    source, folder, case = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    by_renames = case == "replace-by-renames"
    if by_renames:
        bundle_module._exchange = lambda one, other: False
    old, target = folder / "old", folder / "work" / "b"
    make(source, old, "old", force=False)
    faults, seen, kills = [], set(), 0
    for number in range(1, 10_000):
        shutil.rmtree(target.parent, ignore_errors=True)
        target.parent.mkdir()
        if case != "new":
            shutil.copytree(old, target)
        if not killed(number, source, target, force=case != "new"):
            break
        kills += 1
        try:
            if by_renames:
                recover(source, target)
            seen.add(state(target))
            make(source, target, "next", force=True)
            assert state(target) == "next"
            assert os.listdir(target.parent) == ["b"], "leftovers"
        except (AssertionError, EdgeDiffusionError, OSError) as error:
            faults.append(f"kill {number}: {error}")
    print(json.dumps({"kills": kills, "faults": faults, "seen": sorted(seen)}))


def recover(source: Path, target: Path) -> None:
    """What the next export does first; it then refuses to replace without force."""
    try:
        make(source, target, "never", force=False)
    except EdgeDiffusionError:
        return


if __name__ == "__main__":
    main()
