"""What OpenVINO gains over the plain CPU provider here, graph by graph: the ground of ``auto``.

    python benchmarks/device_ratios.py --json benchmarks/results/MACHINE/devices_shapes.json

Every graph is open on all contenders at once and they take turns, because on a shared machine two
minutes are not comparable; what counts are ratios of calls side by side. bf16 is measured even
where the device would not take it, to see whether that is right. Starts are whole processes, from
their launch to a picture of four steps.

``--cpu-time`` counts the time that the processor worked instead of the time that went by: with one
thread it stays comparable on a machine that is busy with something else.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

import edgediffusion as ed
from edgediffusion.engine import Engine, EngineOptions
from edgediffusion.engine_openvino import describe, settings_of, source
from edgediffusion.engine_ort import Compiler, Preparer, open_with
from edgediffusion.files import write_atomically
from edgediffusion.golden import golden_inputs, read_tensors
from edgediffusion.machine import machine_facts
from edgediffusion.manifest import PLAIN, GraphSpec
from edgediffusion.timing import time_call

SCHEMA: Final = "edgediffusion-devices/1"
BASE: Final = "cpu fp32"
STARTS: Final = {
    "cpu, first": ("cpu", True, True),
    "cpu, next": ("cpu", True, False),
    "cpu, no cache": ("cpu", False, False),
    "openvino, first": ("openvino", True, True),
    "openvino, next": ("openvino", True, False),
    "openvino, no cache": ("openvino", False, False),
}
"""Name to device, whether the engine cache is on, and whether it is empty."""

_START: Final = """
import sys
import edgediffusion as ed
with ed.Pipeline.open(sys.argv[1], device=sys.argv[2]) as pipe:
    pipe.generate(ed.Request(prompt="a red circle", steps=4, seed=0))
"""


Clock = Callable[[], int]


def children_time_ns() -> int:
    """The time that the processor worked for processes that this one started and that ended."""
    times = os.times()
    return int(1e9 * (times.children_user + times.children_system))


def contenders(options: EngineOptions) -> dict[str, Compiler]:
    """Name to what opens graphs."""
    openvino: dict[str, Compiler] = {
        f"openvino {arithmetic}": source().compiler(arithmetic, settings_of(arithmetic, options))
        for arithmetic in ("fp32", "bf16")
    }
    return {BASE: Preparer(options, "fp32"), **openvino}


def graph_ms(
    bundle: ed.Bundle, graph: GraphSpec, rounds: int, options: EngineOptions, clock: Clock
) -> dict[str, list[float]]:
    """Milliseconds of each call of a graph, contender by contender, entry i of all side by side."""
    tensors = read_tensors(bundle.file(bundle.component_of(graph).golden))
    inputs = golden_inputs(graph.golden[0], graph, tensors)
    calls: dict[str, Callable[[], object]] = {}
    for name, compiler in contenders(options).items():
        path = bundle.path / graph.file
        backend = open_with(compiler, "", graph, path, options, None)
        calls[name] = partial(_call, Engine(graph, name, backend), inputs)
        calls[name]()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(round(time_call(calls[name], clock), 3))
    return samples


def _call(engine: Engine, inputs: Mapping[str, Any]) -> object:
    return engine(**inputs)


def start_ms(bundle: ed.Bundle, rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Milliseconds of fresh processes, kind by kind, entry i of all side by side."""
    samples: dict[str, list[float]] = {name: [] for name in STARTS}
    with tempfile.TemporaryDirectory() as kept:
        for _ in range(rounds):
            for name, (device, cached, empty) in STARTS.items():
                with tempfile.TemporaryDirectory() as fresh:
                    folder = fresh if empty else kept
                    start = partial(_start, bundle.path, device, folder, cached)
                    if not samples[name] and not empty:
                        start()  # it fills the cache
                    samples[name].append(round(time_call(start, clock), 1))
    return samples


def _start(bundle: Path, device: str, folder: str, cached: bool) -> None:
    limit = "20GiB" if cached else "0"
    cache = {"EDGEDIFFUSION_CACHE": folder, "EDGEDIFFUSION_CACHE_LIMIT": limit}
    command = [sys.executable, "-c", _START, str(bundle), device]
    subprocess.run(command, check=True, env=os.environ | cache)


def ratio(samples: Mapping[str, list[float]], name: str) -> float:
    """The median of the ratios of calls side by side, to the plain CPU provider."""
    pairs = zip(samples[name], samples[BASE], strict=True)
    return statistics.median(ours / base for ours, base in pairs)


def devices_table(report: Mapping[str, Any]) -> str:
    """Ratios of a report as a Markdown table."""
    names = [name for name in next(iter(report["samples_ms"].values())) if name != BASE]
    rows = [f"| graph | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for graph, samples in report["samples_ms"].items():
        cells = " | ".join(f"{ratio(samples, name):.2f}" for name in names)
        rows.append(f"| {graph} | {cells} |")
    return "\n".join(rows)


def starts_table(report: Mapping[str, Any]) -> str:
    """Medians of the starts of a report as a Markdown table."""
    rows = ["| start of a process, to a picture of 4 steps | seconds |", "|---|---:|"]
    for name, samples in report["starts_ms"].items():
        rows.append(f"| {name} | {statistics.median(samples) / 1e3:.2f} |")
    return "\n".join(rows)


def main(
    bundle: str = "shapes",
    out: Annotated[Path | None, typer.Option("--json")] = None,
    rounds: int = 60,
    starts: int = 5,
    threads: int = 0,
    cpu_time: bool = False,
    component: Annotated[list[str] | None, typer.Option(help="Only these.")] = None,
) -> None:
    """Measure a bundle's plain graphs and starts; print tables."""
    opened = ed.Bundle.open(bundle)
    options = EngineOptions(threads=threads)
    clock = time.process_time_ns if cpu_time else time.perf_counter_ns
    samples = {
        graph.file: graph_ms(opened, graph, rounds, options, clock)
        for name, spec in opened.manifest.components.items()
        for graph in spec.graphs
        if graph.variant == PLAIN and (not component or name in component)
    }
    report = {
        "schema": SCHEMA,
        "bundle": {"name": opened.manifest.name, "sha256": opened.sha256},
        "threads": threads,
        "machine": machine_facts() | {"openvino": describe()},
        "samples_ms": samples,
        "clock": "processor" if cpu_time else "wall",
        "starts_ms": start_ms(opened, starts, children_time_ns if cpu_time else clock),
    }
    print(f"times {BASE}:\n{devices_table(report)}\n")
    if starts:
        print(starts_table(report))
    if out is not None:
        write_atomically(out, json.dumps(report).encode() + b"\n")


if __name__ == "__main__":
    typer.run(main)
