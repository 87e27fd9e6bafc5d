"""Make all results of this machine, one program after the other, then the plots and the tables.

    python benchmarks/environments.py make
    python benchmarks/run_all.py benchmarks/results/MACHINE

Each program writes its results file as it goes and fails by itself; the others go on. Stable
Diffusion 1.5's architecture is left out (``--full-size`` adds its peers: hours, and 20 GB of disk).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peers import INTERRUPTED
from benchmarks.plots import DRAWINGS, write_plots
from benchmarks.reports import ROOT, read_report
from edgediffusion.errors import RequestError

Start = Callable[[Sequence[str]], int]

console = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Step:
    """A program of this folder that writes one results file.

    result : the name of the file, handed over by ``--json``.
    words : its name and its other arguments.
    peers : whether it takes ``--home``.
    """

    result: str
    words: tuple[str, ...]
    peers: bool = False

    def command(self, folder: Path, home: Path | None) -> list[str]:
        """The command line."""
        script, *arguments = self.words
        where = ["--home", str(home)] if self.peers and home else []
        path = str(ROOT / "benchmarks" / script)
        return [sys.executable, path, *arguments, *where, "--json", str(folder / self.result)]


STEPS: Final = (
    Step("shapes.json", ("step_latency.py", "shapes")),
    Step("roofline_shapes.json", ("roofline.py", "shapes")),
    Step("throughput_shapes.json", ("throughput.py", "shapes")),
    Step("devices_shapes.json", ("device_ratios.py",)),
    Step("sampler_cost.json", ("sampler_cost.py",)),
    Step("peers_shapes.json", ("peers.py", "shapes"), peers=True),
)
FULL_SIZE: Final = Step("peers_sd15.json", ("peers.py", "sd15-512"), peers=True)


def start(command: Sequence[str]) -> int:
    """Run a command to its end and return its exit code; INTERRUPTED after a Ctrl-C.

    The command has got the same Ctrl-C, and is left to keep what it measured.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    interrupted = False
    with subprocess.Popen(command, env=environment) as child:
        while child.returncode is None:
            try:
                child.wait()
            except KeyboardInterrupt:
                interrupted = True
    return INTERRUPTED if interrupted else child.returncode


def run_steps(
    steps: Sequence[Step], folder: Path, home: Path | None, run: Start = start
) -> dict[str, int]:
    """Run all steps; return the exit codes that were not 0. A Ctrl-C in one ends the rest."""
    faults = {}
    for step in steps:
        console.print(f"{step.result}: {' '.join(step.words)}", markup=False)
        if code := run(step.command(folder, home)):
            faults[step.result] = code
        if code == INTERRUPTED:
            break
    return faults


def draw_all(folder: Path) -> list[Path]:
    """Draw every results file of a folder that has a drawing, into ``plots`` beside them."""
    written = []
    for path in sorted(folder.glob("*.json")):
        try:
            read_report(path, DRAWINGS)
        except RequestError:
            continue  # figures of another kind
        written += write_plots(path, folder / "plots")
    return written


def main(
    folder: Annotated[Path, typer.Argument(help="Where the results of this machine lie.")],
    home: Annotated[
        Path | None, typer.Option(help="The peers' environments; default: the cache.")
    ] = None,
    full_size: Annotated[bool, typer.Option(help="Also the peers of SD 1.5, 512x512.")] = False,
    only: Annotated[str, typer.Option(help="Only results whose name contains this.")] = "",
) -> None:
    """Make all results, plots and tables; exit code 1 where a program failed."""
    steps = [step for step in (*STEPS, *[FULL_SIZE] * full_size) if only in step.result]
    if not steps:
        names = ", ".join(step.result for step in (*STEPS, FULL_SIZE))
        raise typer.BadParameter(f"--only: no result contains {only!r}: {names}")
    folder.mkdir(parents=True, exist_ok=True)
    faults = run_steps(steps, folder.resolve(), home)
    for path in draw_all(folder):
        console.print(str(path), markup=False)
    start([sys.executable, str(ROOT / "benchmarks" / "tables.py")])
    for name, code in faults.items():
        console.print(f"{name}: ended with exit code {code}", markup=False)
    if faults:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
