"""What the exporter's exact rewrites save on a CPU that computes in float32, network by network.

    python benchmarks/rewrites.py BUNDLE --component unet:2 --component vae_decoder --json FILE

Each network's plain graph is rewritten anew, by each rewrite alone and by all together, and the
forms run one after the other on the device ``cpu``, round by round. The weights are those of the
bundle. With ``--pieces`` a network is loaded block by block, for machines with little memory, and
the times of the blocks are added up.

Times are processor seconds of all threads, so that other programs at work on the machine change
them as little as can be; on an idle machine ``--wall`` takes the clock's.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import msgspec
import onnx
import onnx_ir as ir
import typer
from rich.console import Console

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.pieces import Piece, cut
from benchmarks.reports import Report, head, said_errors, write_report
from benchmarks.rewrites_table import PLAIN, rewrites_table
from edgediffusion.bundle import Bundle
from edgediffusion.engine import Array, EngineOptions, open_engine
from edgediffusion.errors import RequestError
from edgediffusion.golden import golden_inputs, read_tensors, relative_l2
from edgediffusion.manifest import GraphSpec
from edgediffusion.residency import component_name
from edgediffusion.rounds import measure
from edgediffusion_export.onnx_export import serialized
from edgediffusion_export.rewrites import FLOAT32, areas_for, rewrite

SCHEMA: Final = "edgediffusion-rewrites/1"
ALL: Final = "all"

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Options:
    """How to measure: rounds, threads (0: one for each core), each rewrite by itself too.

    pieces : load block after block of the network instead of all of it.
    """

    rounds: int = 6
    threads: int = 0
    each: bool = True
    wall: bool = False
    pieces: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise RequestError(f"rounds must be at least 1, got {self.rounds}")

    @property
    def forms(self) -> dict[str, tuple[str, ...]]:
        """The rewrites of each form by its name."""
        alone = {name: (name,) for name in FLOAT32} if self.each else {}
        return {PLAIN: (), **alone, ALL: FLOAT32}

    @property
    def clock(self) -> Callable[[], int]:
        """Nanoseconds."""
        return time.perf_counter_ns if self.wall else time.process_time_ns


def main(
    bundle: str,
    component: Annotated[list[str], typer.Option(help="NAME or NAME:BATCH; repeat for more.")],
    out: Annotated[Path, typer.Option("--json")] = Path("rewrites.json"),
    rounds: int = 6,
    threads: int = 0,
    each: Annotated[bool, typer.Option(help="Every rewrite by itself, too.")] = True,
    wall: Annotated[bool, typer.Option("--wall", help="Clock time, for an idle machine.")] = False,
    pieces: Annotated[bool, typer.Option("--pieces", help="Block by block: less memory.")] = False,
) -> None:
    """Measure, print the table and write the report."""
    with said_errors():
        options = Options(rounds, threads, each, wall, pieces)
        opened = Bundle.open(bundle)
        report = head(SCHEMA) | {
            "bundle": opened.manifest.name,
            "options": {
                "rounds": rounds,
                "threads": threads,
                "clock": _clock_name(options),
                "pieces": pieces,
            },
            "graphs": {},
        }
        for name in component:
            part, _, batch = name.partition(":")
            size = opened.manifest.sizes[0]
            spec = opened.graph(part, batch=int(batch or 1), size=size)
            report["graphs"][spec.file] = compare(opened, spec, options)
            write_report(out, report)
    print(rewrites_table(report))


def compare(bundle: Bundle, spec: GraphSpec, options: Options) -> Report:
    """Run all forms of a graph: for each what was rewritten, its error, and its samples."""
    component = bundle.component_of(spec)
    tensors = read_tensors(bundle.file(component.golden))
    model = onnx.load(bundle.file(spec.file), load_external_data=False)
    pieces = cut(model) if options.pieces else [Piece(model, spec.inputs, spec.outputs)]
    runs = {name: Run(golden_inputs(spec.golden[0], spec, tensors)) for name in options.forms}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / component.weights
        weights.parent.mkdir()
        _link(bundle.file(component.weights), weights)
        for number, piece in enumerate(pieces):
            console.print(f"{spec.file}: {number + 1} of {len(pieces)}")
            _run_piece(piece, spec, Path(folder), runs, options)
            _forget(runs, pieces[number + 1 :], spec)
    return {
        name: run.report(spec, runs[PLAIN])
        for name, run in runs.items()
        if run.rewrites or name == PLAIN
    }


@dataclass
class Run:
    """One form on its way through the pieces: the values that are alive, and what it took."""

    values: dict[str, Array]
    rewrites: Counter[str] = field(default_factory=Counter)
    load_ms: float = 0.0
    samples_ms: list[float] = field(default_factory=list)

    def report(self, spec: GraphSpec, plain: Run) -> Report:
        """What goes into the results file."""
        names = [output.name for output in spec.outputs]
        return {
            "rewrites": dict(self.rewrites),
            "load_ms": self.load_ms,
            "l2_to_plain": max(relative_l2(self.values[n], plain.values[n]) for n in names),
            "samples_ms": self.samples_ms,
        }


def _run_piece(
    piece: Piece, spec: GraphSpec, folder: Path, runs: Mapping[str, Run], options: Options
) -> None:
    """Time a piece in all forms, and take each form's own values on to the next piece."""
    with ExitStack() as stack:
        work = {}
        for name, run in runs.items():
            model = ir.serde.deserialize_model(piece.model)
            areas = areas_for(component_name(spec))
            run.rewrites.update(rewrite(model, options.forms[name], areas))
            file = f"{spec.file.removesuffix('.onnx')}.{name}.onnx"
            (folder / file).write_bytes(serialized(model))
            form = msgspec.structs.replace(
                spec, file=file, fp32=None, inputs=piece.inputs, outputs=piece.outputs
            )
            started = options.clock()
            engine = open_engine(form, folder, "cpu", EngineOptions(threads=options.threads))
            run.load_ms += (options.clock() - started) / 1e6
            stack.enter_context(engine)
            inputs = {tensor.name: run.values[tensor.name] for tensor in piece.inputs}
            work[name] = partial(engine, **inputs)
        samples = measure(work, options.rounds, clock=options.clock)
        for name, run in runs.items():
            before = run.samples_ms or [0.0] * options.rounds
            run.samples_ms = [a + b for a, b in zip(before, samples[name], strict=True)]
            run.values |= work[name]()


def _forget(runs: Mapping[str, Run], rest: Sequence[Piece], spec: GraphSpec) -> None:
    """Drop the values that no later piece reads."""
    needed = {tensor.name for piece in rest for tensor in piece.inputs}
    needed |= {output.name for output in spec.outputs}
    for run in runs.values():
        run.values = {name: value for name, value in run.values.items() if name in needed}


def _link(source: Path, target: Path) -> None:
    """Give a large file a second name where the disk can, else copy it."""
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)


def _clock_name(options: Options) -> str:
    return "wall" if options.wall else "processor"


if __name__ == "__main__":
    typer.run(main)
