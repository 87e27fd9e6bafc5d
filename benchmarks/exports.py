"""What an export option gains and costs: time of a step, right pictures, PSNR.

    edgediffusion export models/shapes/checkpoint -o FP32 --size 128x128
    edgediffusion export models/shapes/checkpoint -o DYNAMIC --size 128x128 --precision int8-dynamic
    edgediffusion export models/shapes/checkpoint -o INT8 --size 128x128 --precision int8 \\
        --calibrate models/shapes/calibration.txt --sampler dpmpp_2m --guidance 3
    python benchmarks/exports.py fp32=FP32 int8-dynamic=DYNAMIC int8=INT8 \\
        --json benchmarks/results/MACHINE/int8.json

The first bundle is what the others are compared with. Steps take turns round by round, and so do
pictures: every held-out caption of the demo is made by each bundle from the same seed. Times are of
the processor, with one thread, so that they compare on a busy machine. models/shapes/judge.py says
which pictures are wholly right; PSNR is to the first bundle's picture. A run that was broken off
goes on where it was. ``--number 0`` measures steps alone, for checkpoints that the judge does not
know.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

# Run as a script, the repository's root is not on the path; the demo's scripts import each other.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models" / "shapes"))

import edgediffusion as ed
from benchmarks.paired import estimate, ratios
from benchmarks.reports import Report, head, markdown, said_errors, write_report
from benchmarks.sameness import psnr_db
from benchmarks.savings import SAVE_EVERY, difference
from edgediffusion.engine import Engine, EngineOptions, open_engine
from edgediffusion.errors import RequestError
from edgediffusion.golden import golden_inputs, read_tensors
from edgediffusion.rounds import measure
from edgediffusion.timing import summarize

SCHEMA: Final = "edgediffusion-exports/1"
DEVICES: Final = ("cpu", "openvino")
REQUEST: Final[Mapping[str, Any]] = {"steps": 20, "guidance": 3.0, "sampler": "dpmpp_2m"}

console = Console(stderr=True)


@said_errors()
def main(
    bundles: Annotated[list[str], typer.Argument(metavar="NAME=BUNDLE...")],
    out: Annotated[Path, typer.Option("--json")] = Path("exports.json"),
    number: Annotated[int, typer.Option(help="Captions to make.")] = 1000,
    rounds: Annotated[int, typer.Option(help="Steps to time.")] = 60,
    device: Annotated[list[str] | None, typer.Option(help="Default: cpu and openvino.")] = None,
) -> None:
    """Fill the table: steps on each device, then caption by caption."""
    opened = read_bundles(bundles)
    report = begin(out, opened)
    for each in device or DEVICES:
        if each not in report["steps_ms"]:
            report["steps_ms"][each] = step_ms(opened, each, rounds)
            write_report(out, report)
    if number:
        add_pictures(report, opened, number, out)
    print(exports_table(report))


def read_bundles(texts: Sequence[str]) -> dict[str, ed.Bundle]:
    """Open bundles that are given as NAME=BUNDLE; raises RequestError or BundleError."""
    pairs = [text.partition("=") for text in texts]
    for text, (name, _, path) in zip(texts, pairs, strict=True):
        if not name or not path:
            raise RequestError(f"bundles: got {text!r}, expected NAME=BUNDLE")
    if len({name for name, _, _ in pairs}) < max(2, len(pairs)):
        raise RequestError("bundles: at least two are compared, each with a name of its own")
    return {name: ed.Bundle.open(path) for name, _, path in pairs}


def begin(out: Path, bundles: Mapping[str, ed.Bundle]) -> Report:
    """The report so far where it is of these bundles, else an empty one."""
    facts = {
        "schema": SCHEMA,
        "bundle_sha256": {name: bundle.sha256 for name, bundle in bundles.items()},
        "l2": {
            name: max(graph.parity.l2 for graph in bundle.manifest.components["unet"].graphs)
            for name, bundle in bundles.items()
        },
        "request": dict(REQUEST),
        "threads": 1,
        "clock": "processor",
    }
    if out.exists():
        found: Report = json.loads(out.read_text(encoding="utf-8"))
        if found.items() >= facts.items():
            return found
    pictures = {name: {"ms": [], "right": [], "psnr_db": []} for name in bundles}
    return {**head(SCHEMA), **facts, "steps_ms": {}, "pictures": pictures}


def step_ms(bundles: Mapping[str, ed.Bundle], device: str, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of the UNet with two rows, entry i of all bundles side by side."""
    with ExitStack() as stack:
        calls = {}
        for name, bundle in bundles.items():
            (size, *_) = bundle.manifest.sizes
            graph = bundle.graph("unet", batch=2, size=size)
            tensors = read_tensors(bundle.file(bundle.component_of(graph).golden))
            options = EngineOptions(threads=1)
            engine = stack.enter_context(open_engine(graph, bundle.path, device, options))
            calls[name] = partial(_call, engine, golden_inputs(graph.golden[0], graph, tensors))
        samples = measure(calls, rounds, clock=time.process_time_ns)
    return {name: [round(ms, 3) for ms in each] for name, each in samples.items()}


def _call(engine: Engine, inputs: Mapping[str, Any]) -> object:
    return engine(**inputs)


def add_pictures(report: Report, bundles: Mapping[str, ed.Bundle], number: int, out: Path) -> None:
    """Make the captions that the report does not have yet."""
    from sampling import draw_captions

    captions = draw_captions(number, held_out=True)
    done = len(report["pictures"][next(iter(bundles))]["ms"])
    with _pipelines(bundles) as pipes:
        for seed in track(range(done, number), "captions", console=console):
            _add(report["pictures"], pipes, captions[seed], seed)
            if seed % SAVE_EVERY == SAVE_EVERY - 1 or seed == number - 1:
                write_report(out, report)


@contextmanager
def _pipelines(bundles: Mapping[str, ed.Bundle]) -> Iterator[dict[str, ed.Pipeline]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(ed.Pipeline.open(bundle.path, device="cpu", threads=1))
            for name, bundle in bundles.items()
        }


def _add(found: dict[str, Any], pipes: Mapping[str, ed.Pipeline], caption: Any, seed: int) -> None:
    """Make one caption with every bundle. The first is made twice: that loads the graphs."""
    from judge import judge

    whole = None
    for name, pipe in pipes.items():
        request = ed.Request(prompt=str(caption), seed=seed, **REQUEST)
        if not found[name]["ms"]:
            pipe.generate(request)
        start = time.process_time_ns()
        picture = pipe.generate(request).images[0]
        found[name]["ms"].append(round((time.process_time_ns() - start) / 1e6, 3))
        whole = picture if whole is None else whole
        error = psnr_db(picture, whole)
        found[name]["right"].append(all(judge(picture, caption).values()))
        found[name]["psnr_db"].append(round(error, 2) if np.isfinite(error) else None)


def exports_table(report: Report) -> str:
    """A report as a Markdown table; of steps alone where no pictures were made."""
    base, *_ = report["l2"]
    devices = report["steps_ms"].values()
    pictures = report["pictures"]
    judged = bool(pictures[base]["right"])
    rows = [
        [name, f"{l2:.1e}", *(_step(samples, name, base) for samples in devices)]
        + (_picture(pictures[name], pictures[base], name == base) if judged else [])
        for name, l2 in report["l2"].items()
    ]
    columns = ["bundle", "L2 error", *(f"step, {device}" for device in report["steps_ms"])]
    columns += ["picture", "wholly right", "difference, points", "PSNR"] if judged else []
    rounds = len(next(iter(devices))[base])
    said = (
        f"{len(pictures[base]['right']):,} held-out captions of the demo, the same seeds for each; "
        if judged
        else ""
    )
    machine = report["machine"]
    return (
        f"{said}steps interleaved over {rounds} rounds; processor time with one thread on "
        f"{machine['cpu']} ({', '.join(machine['cpu_flags'])}). Times are ratios to {base} "
        "on the same device, with 95 % intervals as differences have; PSNR is to the picture of "
        f"{base}. Command: `{report['command']}`.\n\n" + markdown(columns, rows)
    )


def _step(samples: Mapping[str, list[float]], name: str, base: str) -> str:
    found = estimate(ratios(samples[name], samples[base]))
    return "1" if name == base else f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})"


def _picture(pictures: Report, base: Report, is_base: bool) -> list[str]:
    """What a row says of the pictures: time, right ones, the difference, likeness."""
    time_ratio = estimate(ratios(pictures["ms"], base["ms"])).median
    right = sum(pictures["right"]) / len(pictures["right"])
    cells = [f"{time_ratio:.2f}", f"{right:.1%}"]
    if is_base:
        return [*cells, "-", "-"]
    change, low, high = (100 * s for s in difference(pictures["right"], base["right"]))
    near = summarize([value for value in pictures["psnr_db"] if value is not None])
    return [*cells, f"{change:+.1f} ({low:+.1f} to {high:+.1f})", f"{near.median:.1f} dB"]


if __name__ == "__main__":
    typer.run(main)
