"""What an engine of TensorRT for RTX costs to build, without a GPU: time, disk and memory.

    python benchmarks/plan_builds.py BUNDLE/unet/512x512.b2.onnx --kinds 8.9 --kinds 7.5 \
        --json benchmarks/results/MACHINE/plan_builds.json

Each build runs in a process of its own, so that its peak memory is its own. Processor time is told
beside the clock's, because other programs may share the machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.reports import Report, head, markdown, said_errors, write_report
from edgediffusion.byte_sizes import say_bytes
from edgediffusion.errors import EngineError
from edgediffusion.external_data import external_locations
from edgediffusion.machine import peak_memory_mib
from edgediffusion.tensorrt_build import build_plan
from edgediffusion.tensorrt_library import TENSORRT_RTX

SCHEMA: Final = "edgediffusion-plan-builds/1"


def measure(graph: Path, kinds: Sequence[str]) -> dict[str, Any]:
    """Build one plan in this process."""
    trt = TENSORRT_RTX.load()
    start, cpu = time.perf_counter(), time.process_time()
    plan = build_plan(trt, graph, capabilities=kinds)
    return {
        "kinds": list(kinds),
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(time.process_time() - cpu, 1),
        "plan_bytes": plan.data.nbytes,
        "peak_memory_mib": peak_memory_mib(),
    }


def in_a_process_of_its_own(graph: Path, kinds: str) -> dict[str, Any]:
    """Build one plan in a child; raises EngineError with what it said."""
    done = subprocess.run(
        [sys.executable, __file__, str(graph), "--kinds", kinds, "--here"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise EngineError(f"{graph} for {kinds}: {done.stderr.strip().splitlines()[-1]}")
    built: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return built


def plans_table(report: Mapping[str, Any]) -> str:
    """Lay out a report: one row for each plan."""
    weights = report["weights_bytes"]
    rows = [
        [
            ", ".join(build["kinds"]),
            f"{build['processor_seconds']:.0f}",
            say_bytes(build["plan_bytes"]),
            f"{build['plan_bytes'] / weights:.3f}",
            f"{(build['peak_memory_mib'] or 0) / 1024:.1f} GiB",
        ]
        for build in report["builds"]
    ]
    columns = ["kinds of GPU", "processor seconds", "plan", "plan to weights", "peak memory"]
    return markdown(columns, rows)


def plans_report(report: Mapping[str, Any]) -> str:
    """The table, with what was built, by what and how."""
    return (
        f"`{report['graph']}` of {report['model']}, weights {say_bytes(report['weights_bytes'])}, "
        f"{report['library']}, no GPU, {report['machine']['cpu']}: "
        f"`python benchmarks/plan_builds.py`.\n\n{plans_table(report)}"
    )


@said_errors()
def main(
    graph: Path,
    kinds: Annotated[list[str], typer.Option(help="Of one plan, like 8.6,8.9; repeat for more.")],
    model: Annotated[str, typer.Option(help="What the graph is of.")] = "a model",
    out: Annotated[Path | None, typer.Option("--json")] = None,
    here: Annotated[bool, typer.Option(help="Build in this process, print JSON.")] = False,
) -> None:
    """Build plans of a graph one after the other and print what each took."""
    if here:
        print(json.dumps(measure(graph, kinds[0].split(","))))
        return
    report: Report = head(SCHEMA) | {
        "model": model,
        "graph": graph.name,
        "library": f"{TENSORRT_RTX.title} {TENSORRT_RTX.load().__version__}",
        "weights_bytes": sum(
            (graph.parent / name).stat().st_size for name in external_locations(graph)
        ),
        "builds": [in_a_process_of_its_own(graph, each) for each in kinds],
    }
    print(plans_table(report))
    if out is not None:
        write_report(out, report)


if __name__ == "__main__":
    typer.run(main)
