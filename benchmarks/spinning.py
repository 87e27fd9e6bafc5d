"""What waiting threads cost and save: the time of a call, and what a program burns between calls.

    python benchmarks/spinning.py shapes --json benchmarks/results/MACHINE/spinning.json

ONNX Runtime's threads can sleep as soon as they have nothing to do, or look out for work for a
while. Every way has its own session of the same graph, and they take turns.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import onnxruntime as ort
import typer

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import edgediffusion as ed
from benchmarks.lesser_cpus import graphs_of
from benchmarks.paired import estimate, ratios
from benchmarks.reports import bundle_facts, head, markdown, write_report
from edgediffusion.engine_ort import SPINNING
from edgediffusion.golden import golden_inputs, read_tensors
from edgediffusion.timing import time_call

SCHEMA: Final = "edgediffusion-spinning/1"
OURS: Final = "50 microseconds, within a call"
WAYS: Final[Mapping[str, Mapping[str, str]]] = {
    "none": {"intra_op.allow_spinning": "0"},
    OURS: {},
    "ONNX Runtime's default": {
        "intra_op.spin_duration_us": "1000",
        "force_spinning_stop": "0",
    },
}
"""Name to what differs from the runtime's own session options."""
CALLS: Final = 5  # a sample is the mean of so many, back to back as in a run
IDLE_S: Final = 0.25


def open_session(path: Path, way: Mapping[str, str]) -> ort.InferenceSession:
    """Open a graph as the runtime does, but for what a way changes."""
    options = ort.SessionOptions()
    for name, value in {**SPINNING, **way}.items():
        options.add_session_config_entry(f"session.{name}", value)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure(bundle: ed.Bundle, rounds: int) -> dict[str, dict[str, Any]]:
    """Samples of each graph that a picture needs, way by way, entry i of all side by side."""
    found = {}
    for spec in graphs_of(bundle):
        tensors = read_tensors(bundle.file(bundle.component_of(spec).golden))
        inputs = golden_inputs(spec.golden[0], spec, tensors)
        sessions = {way: open_session(bundle.file(spec.file), o) for way, o in WAYS.items()}
        found[spec.file] = take_turns(sessions, inputs, rounds)
    return found


def take_turns(
    sessions: Mapping[str, ort.InferenceSession], inputs: Mapping[str, Any], rounds: int
) -> dict[str, Any]:
    """Milliseconds of a call, and milliseconds that the processor works in a second of waiting."""
    samples: dict[str, dict[str, list[float]]] = {
        way: {"call_ms": [], "idle_ms_per_s": []} for way in sessions
    }
    for _ in range(rounds):
        for way, session in sessions.items():
            call = partial(session.run, None, dict(inputs))
            call()
            ms = time_call(lambda call=call: [call() for _ in range(CALLS)]) / CALLS
            samples[way]["call_ms"].append(round(ms, 3))
            burnt = time_call(partial(time.sleep, IDLE_S), time.process_time_ns) / IDLE_S
            samples[way]["idle_ms_per_s"].append(round(burnt, 3))
    return samples


def spinning_table(report: Mapping[str, Any]) -> str:
    """A report as Markdown: times over those without any spinning."""
    rows = []
    for file, ways in report["samples"].items():
        for way, samples in ways.items():
            time_ = estimate(ratios(samples["call_ms"], ways["none"]["call_ms"]))
            burnt = estimate(samples["idle_ms_per_s"]).median
            spread = f"{time_.median:.2f} ({time_.low:.2f} to {time_.high:.2f})"
            rows.append([f"`{file}`", way, spread, f"{burnt:.1f}"])
    columns = ["graph", "waiting threads spin", "time of a call", "ms of a core per idle second"]
    return markdown(columns, rows)


def main(
    bundle: str,
    out: Annotated[Path | None, typer.Option("--json")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 20,
) -> None:
    """Measure a bundle's graphs; print a table."""
    opened = ed.Bundle.open(bundle)
    report = head(SCHEMA) | bundle_facts(opened) | {"samples": measure(opened, rounds)}
    print(spinning_table(report))
    if out is not None:
        write_report(out, report)


if __name__ == "__main__":
    typer.run(main)
