"""One isolated environment for each program: their pins conflict.

    python benchmarks/environments.py make [NAME ...] [--home DIR]
    python benchmarks/environments.py show [--home DIR]

An environment that is there already with the same requirements is left alone; one that cannot be
installed is recorded with the reason, and the others are made all the same.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from filelock import FileLock
from rich.console import Console
from rich.status import Status
from rich.table import Table

from edgediffusion.errors import choices
from edgediffusion.files import write_atomically
from edgediffusion.hashing import cache_folder
from edgediffusion.openvino_plugin import serves_this_cpu

Say = Callable[[str], None]

ROOT: Final = Path(__file__).resolve().parents[1]
RECORD: Final = "environment.json"
LAST_LINES: Final = 3  # of pip's words, in the reason why something is not there
CONSTRAINTS: Final = ("-c", ".ci/constraints.txt")


@dataclass(frozen=True)
class Environment:
    """What pip is asked for, in the repository's root, and what is taken away afterwards.

    without : packages that a requirement demands, that the work does not need and that would
        break it.
    """

    requirements: tuple[str, ...]
    without: tuple[str, ...] = ()

    @property
    def stamp(self) -> str:
        """Changes with everything that decides what is installed."""
        parts = [*self.requirements, *self.without, sys.version]
        if any(each.startswith(".") for each in self.requirements):
            parts.append(source_digest())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


TORCH: Final = "torch==2.13.0"

OPENVINO: Final = "openvino" if serves_this_cpu() else "openvino-native"
"""The extra that has OpenVINO for this machine's CPU."""
ENVIRONMENTS: Final[Mapping[str, Environment]] = {
    "edgediffusion": Environment((".", *CONSTRAINTS)),
    "edgediffusion-openvino": Environment((f".[{OPENVINO}]", *CONSTRAINTS)),
    "edgediffusion-export": Environment((".[export]", *CONSTRAINTS)),
    "diffusers": Environment(
        (TORCH, "diffusers==0.42.1", "transformers==5.23.0", "accelerate==1.15.0")
    ),
    "optimum-onnx": Environment(
        (
            TORCH,
            "optimum-onnx[onnxruntime]==0.1.0",
            "optimum==2.1.0",
            "diffusers==0.36.0",
            "transformers==4.57.6",
            "onnxruntime==1.32.0",
        )
    ),
    # The exporter of the next one. torchvision's wheel from PyPI is built for CUDA and does not
    # load beside a CPU build of torch; exporting text-to-image models does not need it.
    "optimum-intel": Environment(
        (
            TORCH,
            "optimum-intel[openvino,diffusers]==2.2.0",
            "diffusers==0.39.0",
            "transformers==5.5.4",
            "openvino==2026.4.1",
        ),
        without=("torchvision",),
    ),
    "openvino-genai": Environment(("openvino-genai==2026.4.1.0", "numpy==2.4.6")),
    # No wheel: pip compiles it, with the instruction sets of this machine.
    "stable-diffusion-cpp": Environment(("stable-diffusion-cpp-python==0.4.7", "numpy==2.4.6")),
}


@dataclass(frozen=True, kw_only=True)
class Installed:
    """What became of an environment; ``reason`` says why it cannot be used."""

    folder: Path
    stamp: str
    mib: float | None = None
    packages: int | None = None
    reason: str | None = None


class Record(msgspec.Struct):
    """An environment on disk: written last, so that a half-made one has none."""

    stamp: str
    mib: float | None
    packages: int | None
    reason: str | None


def default_home() -> Path:
    """Where environments and exported models are kept, unless told otherwise."""
    return cache_folder() / "peers"


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def find_environment(
    name: str, home: Path, environments: Mapping[str, Environment] = ENVIRONMENTS
) -> Installed:
    """Look an environment up; one that is not there or out of date has the reason in it."""
    folder, wanted = home / "environments" / name, environments[name].stamp
    try:
        record = msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError):
        record = None
    if record is None or record.stamp != wanted:
        what = "not installed" if record is None else "out of date"
        command = f"python benchmarks/environments.py make {name} --home {home}"
        return Installed(folder=folder, stamp=wanted, reason=f"{what}: {command}")
    return Installed(folder=folder, **msgspec.structs.asdict(record))


def make_environment(
    name: str,
    home: Path,
    environments: Mapping[str, Environment] = ENVIRONMENTS,
    say: Say = lambda text: None,
) -> Installed:
    """Make an environment unless it is there and good; one that failed is tried again."""
    folder = home / "environments" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{name}.lock")):
        there = find_environment(name, home, environments)
        if there.reason is None:
            return there
        shutil.rmtree(folder, ignore_errors=True)
        say("making the environment")
        reason = install(environments[name], folder, say)
        stamp, packages = environments[name].stamp, count_packages(folder)
        record = Record(stamp, folder_mib(folder), packages, reason)
        write_atomically(folder / RECORD, msgspec.json.encode(record))
    return find_environment(name, home, environments)


def install(wanted: Environment, folder: Path, say: Say) -> str | None:
    """Install into a new environment without pip of its own; return why that failed, if it did."""
    venv.create(folder, symlinks=os.name != "nt")
    pip = [sys.executable, "-m", "pip", "--python", str(python_of(folder))]
    steps = [[*pip, "install", *wanted.requirements]]
    if wanted.without:
        steps.append([*pip, "uninstall", "--yes", *wanted.without])
    for command in steps:
        lines: deque[str] = deque(maxlen=LAST_LINES)
        with subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as child:
            assert child.stdout is not None
            for line in filter(None, map(str.strip, child.stdout)):
                lines.append(line)
                say(line)
        if child.returncode != 0:
            return f"pip ended with {child.returncode}: {' / '.join(lines)}"
    return None


def count_packages(folder: Path) -> int:
    """How many distributions an environment holds."""
    return sum(1 for _ in folder.rglob("*.dist-info"))


def folder_mib(folder: Path) -> float:
    """What the files of a folder take, in MiB; what links point to is not counted."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return round(sum(path.stat().st_size for path in files) / 2**20, 1)


def source_digest() -> str:
    """A hash of what an installation of this repository consists of."""
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes())
    for path in sorted(p for part in ("runtime", "export") for p in (ROOT / part).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


# --- the command line ----------------------------------------------------------------------------

app = typer.Typer(add_completion=False, no_args_is_help=True)
console = Console(stderr=True, highlight=False, soft_wrap=True)
Names = Annotated[list[str] | None, typer.Argument(help="Which ones; all by default.")]
Home = Annotated[Path | None, typer.Option(help="Where they lie; default: the user's cache.")]


@app.command()
def make(names: Names = None, home: Home = None) -> None:
    """Make environments; exit code 1 where one of them could not be installed."""
    chosen, place = find_names(names or ()), home or default_home()
    made = []
    for name in chosen:
        with console.status(name) as status:

            def say(text: str, name: str = name, status: Status = status) -> None:
                status.update(f"{name}: {text[:90]}")

            made.append(make_environment(name, place, say=say))
        console.print(f"{name}: {made[-1].reason or 'ready'}", markup=False)
    show(chosen, place)
    if any(each.reason for each in made):
        raise typer.Exit(1)


@app.command()
def show(names: Names = None, home: Home = None) -> None:
    """Show which environments there are."""
    table = Table("environment", "MiB", "packages", "state")
    for name in find_names(names or ()):
        found = find_environment(name, home or default_home())
        size = "-" if found.mib is None else f"{found.mib:,.0f}"
        table.add_row(name, size, str(found.packages or "-"), found.reason or "ready")
    Console().print(table)


def find_names(names: Sequence[str]) -> list[str]:
    """Check names, all where none is given; raises BadParameter with near matches."""
    for name in names:
        if name not in ENVIRONMENTS:
            near = choices(name, ENVIRONMENTS)
            raise typer.BadParameter(f"unknown environment {name!r}: {near}")
    return list(names or ENVIRONMENTS)


if __name__ == "__main__":
    app()
