"""Make all results of this machine, one program after the other, then the plots and the tables.

    python benchmarks/environments.py make
    python benchmarks/run_all.py benchmarks/results/MACHINE

Each program writes its results file as it goes and fails by itself; the others go on. What takes
hours is asked for: ``--full-size`` adds the architecture of Stable Diffusion 1.5 (its peers,
roofline, rewrites and memory; 20 GB of disk), ``--judged`` what is judged over 1,000 captions.
After a run that was broken off, the same command with ``--missing`` makes what is not there yet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Annotated, Final

import typer
from rich.console import Console

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.contenders.models import DEMO, Files
from benchmarks.environments import default_home
from benchmarks.peers import INTERRUPTED, read_folders
from benchmarks.plots import DRAWINGS, write_plots
from benchmarks.reports import ROOT, read_report
from benchmarks.workloads import find_workload
from edgediffusion.bundle import say_size
from edgediffusion.errors import RequestError

Start = Callable[[Sequence[str]], int]

console = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Step:
    """A program of this folder that writes one results file.

    result : the name of the file, handed over by ``--json``.
    line : the program and its other arguments; ``{name}`` stands for a bundle's folder.
    """

    result: str
    line: str

    @property
    def words(self) -> list[str]:
        """The program and its arguments, one by one."""
        return self.line.split()

    @property
    def bundles(self) -> list[str]:
        """The names of the bundles that it reads."""
        return [name for _, name, _, _ in Formatter().parse(self.line) if name]

    @property
    def has_peers(self) -> bool:
        """Whether other programs are measured beside this one, in environments of their own."""
        return self.words[0] == "peers.py"


CALIBRATION: Final = str(DEMO.parent / "calibration.txt")
DEMO_EXPORTS: Final[Mapping[str, Sequence[str]]] = {
    "demo_fp32": (),
    "demo_dynamic": ("--precision", "int8-dynamic"),
    "demo_int8": (
        *("--precision", "int8", "--calibrate", CALIBRATION),
        *("--sampler", "dpmpp_2m", "--guidance", "3"),
    ),
    "demo_sizes": ("--size", "96x96"),
    "demo_attention_tiles": ("--attention-tiles", "2"),
    "demo_tiled": ("--batch", "2", "--split", "3", "--decoder-tile", "64x64"),
}
"""Bundles that are made of the demo's checkpoint, and the exporter's options."""
FULL_SIZE_BUNDLE: Final = "sd15"
FULL_SIZE_WORKLOAD: Final = "sd15-512"
FULL_SIZE_EXPORTS: Final[Mapping[str, Sequence[str]]] = {
    "sd15_parts": ("--batch", "2", "--split", "8", "--decoder-tile", "256x256"),
    "sd15_attention_tiles": ("--batch", "2", "--attention-tiles", "2"),
}
"""Bundles that are made of the full-size checkpoint, beside the one that peers are measured on."""

STEPS: Final = (
    Step("shapes.json", "step_latency.py shapes"),
    Step("roofline_shapes.json", "roofline.py shapes --device cpu"),
    Step("throughput_shapes.json", "throughput.py shapes"),
    Step("devices_shapes.json", "device_ratios.py"),
    Step("spinning.json", "spinning.py shapes"),
    Step("sampler_cost.json", "sampler_cost.py"),
    Step("memory_shapes.json", "memory.py {demo_tiled} --tile 64x64"),
    Step("sizes_shapes.json", "size_switch.py {demo_sizes}"),
    Step("peers_shapes.json", "peers.py shapes"),
)
NETWORKS: Final = "--component text_encoder --component unet --component vae_decoder"
FULL_SIZE: Final = (
    Step("peers_sd15.json", f"peers.py {FULL_SIZE_WORKLOAD}"),
    Step(
        "peers_sd15_fast.json",
        f"peers.py {FULL_SIZE_WORKLOAD} --contender edgediffusion-openvino-fast "
        "--contender openvino-genai-fp32 --count end_to_end_4=0 --rounds 2",
    ),
    Step("roofline_sd15.json", f"roofline.py {{sd15}} --device cpu --rounds 8 {NETWORKS}"),
    Step(
        "rewrites.json",
        "rewrites.py {sd15} --component unet:2 --component vae_decoder --no-each --rounds 6",
    ),
    Step("int8_full_size.json", "int8_full_size.py {sd15}"),
    Step("memory_sd15.json", "memory.py {sd15_parts} --tile 256x256"),
    Step(
        "tiles_sd15.json",
        "exports.py fp32={sd15} tiles={sd15_attention_tiles} --number 0 --rounds 6 --device cpu",
    ),
)
JUDGED: Final = (
    Step("int8.json", "exports.py fp32={demo_fp32} int8-dynamic={demo_dynamic} int8={demo_int8}"),
    Step("tiles.json", "exports.py fp32={demo_fp32} tiles={demo_attention_tiles}"),
    Step("savings.json", "savings.py shapes --number 1000"),
)


@dataclass(frozen=True)
class Places:
    """Where things lie.

    folder : the results files.
    home : the peers' environments, and what is exported.
    given : folders of the full-size workload that are there already, by name.
    """

    folder: Path
    home: Path
    given: Mapping[str, Path] = field(default_factory=dict)

    @property
    def exported(self) -> Path:
        """Where bundles are exported to."""
        return self.home / "models" / "run-all"

    @property
    def full_size(self) -> Files:
        """The folders of the full-size workload; what is not given, its peers' step makes."""
        return Files(find_workload(FULL_SIZE_WORKLOAD), self.home, {}, self.given)

    def bundle(self, name: str) -> Path:
        """The folder of a bundle that a step reads."""
        if name != FULL_SIZE_BUNDLE:
            return self.exported / name
        return self.given.get("bundle", self.full_size.target("bundle"))

    def command(self, step: Step) -> list[str]:
        """The command line of a step."""
        script, *arguments = step.words
        words = [word.format_map({n: self.bundle(n) for n in step.bundles}) for word in arguments]
        if step.has_peers:
            words += ["--home", str(self.home)]
        if FULL_SIZE_WORKLOAD in words:
            words += [word for key, at in self.given.items() for word in ("--given", f"{key}={at}")]
        path = str(ROOT / "benchmarks" / script)
        return [sys.executable, path, *words, "--json", str(self.folder / step.result)]

    def exports(self, step: Step) -> list[list[str]]:
        """The command lines that make the bundles which a step lacks."""
        lacking = [
            name for name in step.bundles if not (self.bundle(name) / "manifest.json").exists()
        ]
        return [self._export(name) for name in lacking if name != FULL_SIZE_BUNDLE]

    def _export(self, name: str) -> list[str]:
        full = FULL_SIZE_EXPORTS.get(name)
        checkpoint = DEMO if full is None else self.full_size.checkpoint_folder
        options = DEMO_EXPORTS[name] if full is None else full
        size = "128x128" if full is None else say_size(self.full_size.workload.size)
        command = [sys.executable, "-m", "edgediffusion.cli", "export", str(checkpoint)]
        return [*command, "-o", str(self.bundle(name)), "--size", size, *options]


def is_there(path: Path) -> bool:
    """Whether a results file was made, to its end."""
    try:
        return bool(json.loads(path.read_bytes()).get("complete", True))
    except (OSError, ValueError):
        return False


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


def run_steps(steps: Sequence[Step], places: Places, run: Start = start) -> dict[str, int]:
    """Run all steps; return the exit codes that were not 0. A Ctrl-C in one ends the rest."""
    faults = {}
    for step in steps:
        console.print(f"{step.result}: {step.line}", markup=False)
        exports = places.exports(step)
        if exports:
            places.exported.mkdir(parents=True, exist_ok=True)
        for command in (*exports, places.command(step)):
            if code := run(command):
                faults[step.result] = code
                break
        if faults.get(step.result) == INTERRUPTED:
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
        Path | None, typer.Option(help="Environments and exported models; default: the cache.")
    ] = None,
    full_size: Annotated[bool, typer.Option(help="Also SD 1.5's architecture, 512x512.")] = False,
    judged: Annotated[bool, typer.Option(help="Also what is judged over 1,000 captions.")] = False,
    missing: Annotated[bool, typer.Option(help="Only results that are not there yet.")] = False,
    only: Annotated[str, typer.Option(help="Only results whose name contains this.")] = "",
    given: Annotated[
        list[str] | None,
        typer.Option(help="NAME=DIR: a full-size folder that is there: checkpoint, bundle, ..."),
    ] = None,
) -> None:
    """Make all results, plots and tables; exit code 1 where a program failed."""
    try:
        folders = read_folders(given or ())
    except RequestError as error:
        raise typer.BadParameter(str(error)) from error
    known = (*STEPS, *FULL_SIZE * full_size, *JUDGED * judged)
    steps = [step for step in known if only in step.result]
    if not steps:
        names = ", ".join(step.result for step in known)
        raise typer.BadParameter(f"--only: no result contains {only!r}: {names}")
    folder.mkdir(parents=True, exist_ok=True)
    if missing:
        steps = [step for step in steps if not is_there(folder / step.result)]
    places = Places(folder.resolve(), (home or default_home()).resolve(), folders)
    faults = run_steps(steps, places)
    for path in draw_all(folder):
        console.print(str(path), markup=False)
    start([sys.executable, str(ROOT / "benchmarks" / "tables.py")])
    for name, code in faults.items():
        console.print(f"{name}: ended with exit code {code}", markup=False)
    if faults:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
