"""Whether the graphs stay right on lesser CPUs than this one, and what ``auto`` takes there.

    apt-get install qemu-user
    python benchmarks/lesser_cpus.py measure shapes --json FILE

OpenVINO obeys ONEDNN_MAX_CPU_ISA: a lesser CPU is this one with fewer instructions, and its time
can be compared. ONNX Runtime asks the processor: there QEMU emulates a lesser one, which proves
that the results are right and says nothing about time. Without QEMU those rows say so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import edgediffusion as ed
from benchmarks.paired import estimate, ratios
from benchmarks.reports import bundle_facts, head, write_report
from edgediffusion.auto import Chooser
from edgediffusion.engine import EngineOptions, open_engine
from edgediffusion.errors import EngineError
from edgediffusion.golden import check_graph, golden_inputs, read_tensors
from edgediffusion.manifest import PLAIN, GraphSpec
from edgediffusion.timing import time_call

SCHEMA: Final = "edgediffusion-lesser-cpus/1"
QEMU: Final = "qemu-x86_64"
MODELS: Final[Mapping[str, str]] = {
    "Nehalem": "SSE4.2, of 2008",
    "Haswell": "AVX2 and FMA, of 2013",
}
ISAS: Final[Mapping[str, str]] = {
    "this CPU": "",
    "AVX512_CORE_VNNI": "AVX512_CORE_VNNI",
    "AVX2_VNNI": "AVX2_VNNI",
    "AVX2": "AVX2",
    "SSE41": "SSE41",
}
"""Name to the value of ONEDNN_MAX_CPU_ISA."""
COMPONENTS: Final = ("text_encoder", "unet", "vae_decoder")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def graphs_of(bundle: ed.Bundle) -> list[GraphSpec]:
    """The plain graphs that a picture with guidance needs."""
    specs = (bundle.manifest.components[name].graphs for name in COMPONENTS)
    return [max((g for g in each if g.variant == PLAIN), key=lambda g: g.batch) for each in specs]


def probe_cpu(name: str, rounds: int) -> dict[str, Any]:
    """The errors of the ``cpu`` device in this process."""
    return {"errors": errors_on(ed.Bundle.open(name), "cpu")}


def probe_openvino(name: str, rounds: int) -> dict[str, Any]:
    """What ``auto`` takes in this process, OpenVINO's errors, and its time beside ``cpu``'s."""
    bundle = ed.Bundle.open(name)
    chooser = Chooser(bundle, "auto", EngineOptions())
    for spec in graphs_of(bundle):
        chooser.open(spec).close()
    found: dict[str, Any] = {"auto": chooser.device, "arithmetic": chooser.arithmetic}
    try:
        found["errors"] = errors_on(bundle, "openvino")
    except EngineError as error:
        return found | {"error": str(error)}
    return found | {"samples_ms": {g.file: times_of(bundle, g, rounds) for g in graphs_of(bundle)}}


PROBES: Final = {"cpu": probe_cpu, "openvino": probe_openvino}


def errors_on(bundle: ed.Bundle, device: str) -> dict[str, float]:
    """The L2 error of each graph's first golden case, by file."""
    errors = {}
    for spec in graphs_of(bundle):
        tensors = read_tensors(bundle.file(bundle.component_of(spec).golden))
        with open_engine(spec, bundle.path, device) as engine:
            errors[spec.file] = check_graph(engine, tensors, cases=1)
    return errors


def times_of(bundle: ed.Bundle, spec: GraphSpec, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of calls on both devices in turn."""
    tensors = read_tensors(bundle.file(bundle.component_of(spec).golden))
    inputs = golden_inputs(spec.golden[0], spec, tensors)
    engines = {name: open_engine(spec, bundle.path, name) for name in PROBES}
    calls = {name: partial(engine, **inputs) for name, engine in engines.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(round(time_call(call), 3))
    for engine in engines.values():
        engine.close()
    return samples


@app.command(hidden=True)
def probe(device: str, bundle: str, rounds: int) -> None:
    """Look at one device in this process; print JSON."""
    print(json.dumps(PROBES[device](bundle, rounds)))


@app.command()
def measure(
    bundle: str,
    out: Annotated[Path | None, typer.Option("--json")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 20,
) -> None:
    """Look at every lesser CPU in turn; print a table."""
    opened = ed.Bundle.open(bundle)
    report = head(SCHEMA) | bundle_facts(opened)
    report |= {
        "gate": opened.manifest.gates["fp32"],
        "emulator": emulator(),
        "openvino": {
            name: ask([], "openvino", bundle, rounds, {"ONEDNN_MAX_CPU_ISA": isa} if isa else {})
            for name, isa in ISAS.items()
        },
        "cpu": {name: ask([QEMU, "-cpu", name], "cpu", bundle, 0, {}) for name in MODELS},
    }
    print(lesser_cpus_table(report))
    if out is not None:
        write_report(out, report)


def emulator() -> str | None:
    """QEMU's version, None where it is not installed."""
    if shutil.which(QEMU) is None:
        return None
    said = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True)
    return said.stdout.splitlines()[0]


def ask(
    prefix: Sequence[str], device: str, bundle: str, rounds: int, variables: Mapping[str, str]
) -> dict[str, Any]:
    """Run a probe in a process of its own; what went wrong is an answer too."""
    if prefix and shutil.which(prefix[0]) is None:
        return {"error": f"{prefix[0]} is not installed"}
    # The cache would hide what a lesser CPU compiles, and what auto proved on this one.
    variables = os.environ | {"EDGEDIFFUSION_CACHE_LIMIT": "0"} | dict(variables)
    command = [*prefix, sys.executable, __file__, "probe", device, bundle, str(rounds)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = [line.strip() for line in done.stderr.splitlines() if line.strip()][-1:]
        return {"error": f"ended with {done.returncode}: {' '.join(last)}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def lesser_cpus_table(report: Mapping[str, Any]) -> str:
    """A report as Markdown."""
    lines = [
        "| CPU | device | worst L2 error | UNet step, times `cpu`'s | `auto` takes |",
        "|---|---|---:|---:|---|",
    ]
    for name, row in report["openvino"].items():
        if "error" in row:
            why = row["error"].rpartition(": ")[2]
            lines.append(f"| {name} | openvino | {why} | | {row.get('auto', '')} |")
            continue
        step = next(s for file, s in row["samples_ms"].items() if file.startswith("unet/"))
        time = estimate(ratios(step["openvino"], step["cpu"]))
        spread = f"{time.median:.2f} ({time.low:.2f} to {time.high:.2f})"
        worst = f"{max(row['errors'].values()):.1e}"
        lines.append(f"| {name} | openvino | {worst} | {spread} | {row['auto']} |")
    for name, row in report["cpu"].items():
        worst = row.get("error") or f"{max(row['errors'].values()):.1e}"
        lines.append(f"| {name} ({MODELS[name]}) | cpu | {worst} | not timed: emulated | |")
    return "\n".join(lines)


if __name__ == "__main__":
    app()
