"""The files that contenders read: one checkpoint, and what their own exporters make of it.

Every folder is made once for a workload and kept, with a stamp of what it was made from.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.contenders.process import ROOT, clean_environment
from benchmarks.environments import Installed, Say, python_of
from benchmarks.workloads import Workload
from edgediffusion.bundle import say_size
from edgediffusion.files import write_atomically

STAMP: Final = "made-from.json"
DEMO: Final = ROOT / "models" / "shapes" / "checkpoint"


class NotMade(Exception):
    """Files could not be made; the contenders that need them are rows that say why."""


@dataclass(frozen=True)
class Exporter:
    """What turns a checkpoint into the files of a program: a module and its arguments."""

    environment: str
    arguments: tuple[str, ...]


EXPORTERS: Final[Mapping[str, Exporter]] = {
    "bundle": Exporter(
        "edgediffusion-export",
        ("edgediffusion.cli", "export", "{checkpoint}", "-o", "{output}", "--size", "{size}"),
    ),
    "onnx": Exporter(
        "optimum-onnx",
        ("optimum.commands.optimum_cli", "export", "onnx", "--model", "{checkpoint}",
         "--task", "text-to-image", "{output}"),
    ),
    "openvino-ir": Exporter(
        "optimum-intel",
        ("optimum.commands.optimum_cli", "export", "openvino", "--model", "{checkpoint}",
         "--task", "text-to-image", "--weight-format", "fp16", "{output}"),
    ),
}  # fmt: skip


@dataclass
class Files:
    """The folders of one workload under ``home``.

    given : folders that the user has already, by name (``checkpoint``, ``bundle``, ...).
    """

    workload: Workload
    home: Path
    environments: Mapping[str, Installed]
    given: Mapping[str, Path] = field(default_factory=dict)
    say: Say = lambda text: None

    def folder(self, name: str) -> Path:
        """The folder of that name, made where it is not there. Raises NotMade."""
        if name in self.given:
            return self.given[name]
        return self.checkpoint() if name == "checkpoint" else self.exported(name)

    def checkpoint(self) -> Path:
        """The checkpoint that all work on."""
        if self.workload.architecture == "shapes":
            return DEMO
        command = [sys.executable, str(ROOT / "benchmarks" / "make_checkpoint.py")]
        options = ["--dtype", self.workload.dtype, "--force"]
        stamp = " ".join(["make_checkpoint", self.workload.architecture, *options])

        def make(folder: Path) -> None:
            self.run([*command, self.workload.architecture, "-o", str(folder), *options])

        return made_once(self.checkpoint_folder, stamp, make)

    @property
    def checkpoint_folder(self) -> Path:
        """Where the checkpoint is, or is made."""
        made = self.home / "checkpoints" / self.workload.architecture
        return self.given.get("checkpoint", made)

    def exported(self, name: str) -> Path:
        """What one exporter makes of the checkpoint."""
        exporter = EXPORTERS[name]
        installed = self.environments[exporter.environment]
        if installed.reason is not None:
            raise NotMade(f"{name} needs {exporter.environment}: {installed.reason}")
        checkpoint, size = self.folder("checkpoint"), say_size(self.workload.size)
        stamp = f"{installed.stamp} {exporter.arguments} {size} {digest_of_folder(checkpoint)}"

        def make(folder: Path) -> None:
            places = {"checkpoint": str(checkpoint), "output": str(folder), "size": size}
            words = [word.format(**places) for word in exporter.arguments]
            self.run([str(python_of(installed.folder)), "-m", *words])

        return made_once(self.target(name), stamp, make)

    def target(self, name: str) -> Path:
        """Where an exporter's folder lies."""
        size = say_size(self.workload.size)
        return self.home / "models" / f"{self.workload.architecture}-{size}" / name

    def run(self, command: list[str]) -> None:
        """Run an exporter to its end. Raises NotMade with its last words."""
        self.say(" ".join(command[1:]))
        child = subprocess.run(
            command,
            cwd=ROOT,
            env=clean_environment(),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if child.returncode != 0:
            last = [line.strip() for line in child.stderr.splitlines() if line.strip()][-1:]
            raise NotMade(f"{command[2]} ended with {child.returncode}: {' '.join(last)}")


def made_once(target: Path, stamp: str, make: Callable[[Path], None]) -> Path:
    """Make a folder beside its place and move it there, unless it is there with this stamp."""
    stamped = target.parent / f"{target.name}.{STAMP}"
    text = json.dumps({"stamp": stamp}).encode()
    if target.is_dir() and stamped.is_file() and stamped.read_bytes() == text:
        return target
    temporary = target.with_name(f".{target.name}.new")
    target.parent.mkdir(parents=True, exist_ok=True)
    for old in (stamped, temporary, target):
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    make(temporary)
    temporary.rename(target)
    write_atomically(stamped, text)  # last: a folder without it is made anew
    return target


def digest_of_folder(folder: Path) -> str:
    """A hash of names, sizes and times: whether a folder is the one that it was."""
    facts = [
        f"{path.relative_to(folder).as_posix()} {path.stat().st_size} {path.stat().st_mtime_ns}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()
