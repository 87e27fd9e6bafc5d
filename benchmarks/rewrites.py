"""What the exporter's exact rewrites save on a CPU that computes in float32, network by network.

    python benchmarks/rewrites.py BUNDLE --component unet:2 --component vae_decoder --json FILE

Each network's plain graph is rewritten anew, by each rewrite alone and by all together, and the
forms run one after the other on the device ``cpu``, round by round. The weights are those of the
bundle. Times are processor seconds of all threads, so that other programs at work on the machine
change them as little as can be; on an idle machine ``--wall`` takes the clock's.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import onnx_ir as ir
import typer
from rich.console import Console

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.reports import Report, head, said_errors, write_report
from benchmarks.rewrites_table import PLAIN, rewrites_table
from edgediffusion.bundle import Bundle
from edgediffusion.engine import Engine, EngineOptions, open_engine
from edgediffusion.errors import RequestError
from edgediffusion.golden import Tensors, golden_inputs, read_tensors, relative_l2
from edgediffusion.manifest import GraphSpec, Rewritten
from edgediffusion.rounds import measure
from edgediffusion_export.onnx_export import serialized
from edgediffusion_export.options import REWRITES
from edgediffusion_export.rewrites import rewrite

SCHEMA: Final = "edgediffusion-rewrites/1"
ALL: Final = "all"

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Options:
    """How to measure: rounds, threads (0: one for each core), each rewrite by itself too."""

    rounds: int = 6
    threads: int = 0
    each: bool = True
    wall: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise RequestError(f"rounds must be at least 1, got {self.rounds}")

    @property
    def forms(self) -> dict[str, tuple[str, ...]]:
        """The rewrites of each form by its name."""
        alone = {name: (name,) for name in REWRITES} if self.each else {}
        return {PLAIN: (), **alone, ALL: REWRITES}

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
) -> None:
    """Measure, print the table and write the report."""
    with said_errors():
        options = Options(rounds, threads, each, wall)
        opened = Bundle.open(bundle)
        report = head(SCHEMA) | {
            "bundle": opened.manifest.name,
            "options": {"rounds": rounds, "threads": threads, "clock": _clock_name(options)},
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
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        weights = folder / component.weights
        weights.parent.mkdir()
        _link(bundle.file(component.weights), weights)
        found: dict[str, Any] = {}
        engines: dict[str, Engine] = {}
        for name, form in _forms(bundle, spec, folder, options.forms):
            console.print(f"{spec.file}: loading {name}")
            started = options.clock()
            engine = open_engine(form, folder, "cpu", EngineOptions(threads=options.threads))
            loading = (options.clock() - started) / 1e6
            engines[name] = stack.enter_context(engine)
            counts = form.fp32.rewrites if form.fp32 else {}
            found[name] = {"rewrites": counts, "load_ms": loading}
        samples = _samples(spec, engines, tensors, options)
        plain = _outputs(spec, engines[PLAIN], tensors)
        for name, engine in engines.items():
            got = _outputs(spec, engine, tensors)
            worst = max(relative_l2(got[output], plain[output]) for output in plain)
            found[name] |= {"l2_to_plain": worst, "samples_ms": samples[name]}
    return found


def _forms(
    bundle: Bundle, spec: GraphSpec, folder: Path, forms: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, GraphSpec]]:
    """Write the forms beside the weights; those that change nothing are left out."""
    for name, rewrites in forms.items():
        model = ir.load(bundle.file(spec.file))
        counts = rewrite(model, rewrites)
        if counts or name == PLAIN:
            file = f"{spec.file.removesuffix('.onnx')}.{name}.onnx"
            (folder / file).write_bytes(serialized(model))
            rewritten = Rewritten(file, counts) if counts else None
            yield name, msgspec.structs.replace(spec, file=file, fp32=rewritten)


def _samples(
    spec: GraphSpec, engines: Mapping[str, Engine], tensors: Tensors, options: Options
) -> dict[str, list[float]]:
    inputs = golden_inputs(spec.golden[0], spec, tensors)
    work = {name: partial(engine, **inputs) for name, engine in engines.items()}
    return measure(work, options.rounds, console.print, clock=options.clock)


def _outputs(spec: GraphSpec, engine: Engine, tensors: Tensors) -> dict[str, Any]:
    return engine(**golden_inputs(spec.golden[0], spec, tensors))


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
