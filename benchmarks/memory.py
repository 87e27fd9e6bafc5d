"""Peak memory of making a picture, by what stays in memory, and the price of it in time.

    edgediffusion export CHECKPOINT -o BUNDLE --batch 2 --split 8 --decoder-tile 256x256
    python benchmarks/memory.py BUNDLE --tile 256x256 --json benchmarks/results/MACHINE/memory.json

Every way runs in a process of its own, whose largest resident memory (mapped pages count) is read
from the system once all pictures are there: what a pool grows by in a second step, and in a second
picture, is in it. A first start finds an empty engine cache, a next start
what the first one left. Times are processor seconds, which a busy machine disturbs less than the
clock. ``--residency`` measures one of them now; the others are added to the same report later.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import edgediffusion as ed
from benchmarks.reports import Report, head, markdown, read_report, said_errors, write_report
from benchmarks.sameness import psnr_db
from edgediffusion.bundle import parse_size
from edgediffusion.golden import golden_inputs, read_tensors, relative_l2
from edgediffusion.graph_bytes import read_graph_bytes
from edgediffusion.machine import peak_memory_mib, resident_memory_mib
from edgediffusion.memory_limit import estimate, request_graphs
from edgediffusion.request import plan_request

SCHEMA: Final = "edgediffusion-memory/1"
MIB: Final = 1 << 20
PICTURES: Final = 2

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to make the picture: what stays in memory, in tiles or not, on which start."""

    residency: str
    tile: str | None
    start: str

    @property
    def name(self) -> str:
        """Its name in the report."""
        return f"{self.residency}{', tiles' if self.tile else ''}, {self.start} start"

    def request(self, steps: int) -> ed.Request:
        """The picture to make, with guidance."""
        tile = parse_size(self.tile) if self.tile else None
        return ed.Request(
            prompt="an astronaut", steps=steps, guidance=7.5, seed=7, decoder_tile=tile
        )


def ways(tile: str | None) -> list[Way]:
    """All ways in the order to run them; next starts find what a first one of their kind left."""
    found: list[tuple[str, str | None, str]] = [("all", None, "first"), ("all", None, "next")]
    found += [("one", None, "next"), ("stream", tile, "first"), ("stream", tile, "next")]
    return [Way(residency=how, tile=size, start=start) for how, size, start in found]


@app.command()
@said_errors()
def main(
    bundle: Path,
    out: Annotated[Path, typer.Option("--json")] = Path("memory.json"),
    tile: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH of the decoder's tiles.")] = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps of a picture.")] = 2,
    residency: Annotated[str | None, typer.Option(help="Measure this one only.")] = None,
    work: Annotated[Path, typer.Option(help="Caches and pictures.")] = Path("memory-work"),
    child: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure every way that the report lacks."""
    if child is not None:
        write_report(out, make_picture(bundle, Way(**json.loads(child)), steps, work))
        return
    opened = ed.Bundle.open(bundle)
    report = begin(out, opened, steps)
    for way in ways(tile):
        if way.name not in report["ways"] and residency in (None, way.residency):
            report["ways"][way.name] = measure(bundle, way, steps, work)
        if way.name in report["ways"]:
            report["ways"][way.name] |= expected(opened, way, steps)
            write_report(out, report)
    if all((work / f"{way.residency}.npz").exists() for way in ways(tile)):
        for way in ways(tile):
            report["ways"][way.name] |= likeness(work, way)
        write_report(out, report)
        shutil.rmtree(work)


def begin(out: Path, bundle: ed.Bundle, steps: int) -> Report:
    """The report so far where it is of this bundle, else an empty one."""
    facts = {"bundle": bundle.manifest.name, "bundle_sha256": bundle.sha256}
    facts |= {"steps": steps, "pictures": PICTURES}
    if out.exists():
        found = read_report(out, [SCHEMA])
        if found.items() >= facts.items():
            return found
    return head(SCHEMA) | facts | {"ways": {}}


def measure(bundle: Path, way: Way, steps: int, work: Path) -> Report:
    """Make the picture in a process of its own; return what that process reports."""
    cache = work / ("stream" if way.residency == "stream" else "whole")
    if way.start == "first":
        shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    found = work / "child.json"
    options = ["--steps", steps, "--work", work, "--json", found, "--child"]
    command = [sys.executable, __file__, bundle, *options, json.dumps(asdict(way))]
    paths = {"EDGEDIFFUSION_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([str(word) for word in command], env=os.environ | paths, check=True)
    return read_report(found, [SCHEMA])["figures"]


def make_picture(bundle: Path, way: Way, steps: int, work: Path) -> Report:
    """Make the picture here and now; return its peak memory and times."""
    with ed.Pipeline.open(bundle, device="cpu", residency=way.residency) as pipe:
        start = time.process_time()
        first, *_, result = (pipe.generate(way.request(steps)) for _ in range(PICTURES))
        figures = {
            "peak_mib": peak_memory_mib(),
            "resting_mib": resident_memory_mib(),
            "pictures_cpu_s": time.process_time() - start,
            "stages_ms": first.timings.stages,
            "step_ms": result.timings.step,
        }
        if way.start == "next":
            figures["step_cpu_s"] = [time_step(pipe) for _ in range(2)]
    np.savez(work / f"{way.residency}.npz", latents=result.latents, picture=result.images)
    return {"schema": SCHEMA, "figures": figures}


def time_step(pipe: ed.Pipeline) -> float:
    """Processor seconds of one call of the UNet for guidance, on its first golden inputs."""
    bundle = pipe.bundle
    engine = pipe.engine("unet", batch=2, size=bundle.manifest.sizes[0])
    tensors = read_tensors(bundle.file(bundle.manifest.components["unet"].golden))
    inputs = golden_inputs(engine.spec.golden[0], engine.spec, tensors)
    start = time.process_time()
    engine(**inputs)
    return time.process_time() - start


def expected(bundle: ed.Bundle, way: Way, steps: int) -> Report:
    """What ``max_memory`` goes by, and what it is made of, in MiB."""
    plan = plan_request(way.request(steps), bundle)
    graphs = request_graphs(bundle, plan, plan.decoder_tile)
    sizes = [read_graph_bytes(bundle.file(graph.file)) for graph in graphs]
    return {
        "estimate_mib": estimate(bundle, graphs, way.residency) / MIB,  # type: ignore[arg-type]
        "weights_mib": sum(size.weights for size in sizes) / MIB,
        "largest_working_mib": max(size.working for size in sizes) / MIB,
    }


def likeness(work: Path, way: Way) -> Report:
    """How like the picture is to the one that was made with everything in memory."""
    with np.load(work / f"{way.residency}.npz") as got, np.load(work / "all.npz") as want:
        psnr = psnr_db(got["picture"], want["picture"])
        return {
            "latents_l2": relative_l2(got["latents"], want["latents"]),
            "psnr_db": psnr if np.isfinite(psnr) else None,
        }


def memory_table(report: Report) -> str:
    """Render the report for docs/memory.md."""
    base = report["ways"].get("all, next start", {}).get("step_cpu_s")
    rows = []
    for name, way in report["ways"].items():
        step = way.get("step_cpu_s")
        price = f"{min(step) / min(base):.2f}" if step and base else "-"
        memory = [f"{way[key]:,.0f} MiB" for key in ("peak_mib", "resting_mib", "estimate_mib")]
        loading = f"{way['stages_ms']['load'] / 1e3:.1f} s"
        rows.append([name, *memory, price, loading, _picture(way)])
    columns = ["residency", "peak memory", "at rest", "estimate", "time of a step", "loading",
               "picture"]  # fmt: skip
    facts, first = report["machine"], next(iter(report["ways"].values()))
    return (
        f"{report['bundle']}, weights {first['weights_mib']:,.0f} MiB in fp32; ONNX Runtime "
        f"{facts['libraries']['onnxruntime']}, {facts['cores']} cores of {facts['cpu']}, shared "
        f"with other work. {report['pictures']} pictures of {report['steps']} steps; at rest: "
        "after them. Time of a step is processor time over that of `all`; loading is by the clock, "
        "all graphs together; the picture is compared with that of `all`.\n\n"
        + markdown(columns, rows)
    )


def _picture(way: Report) -> str:
    if "psnr_db" not in way:
        return "-"
    return "equal" if way["psnr_db"] is None else f"{way['psnr_db']:.1f} dB"


if __name__ == "__main__":
    app()
