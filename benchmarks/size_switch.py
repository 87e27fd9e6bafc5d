"""What another size costs: disk for its graphs, and the time to load them when it is asked for.

    edgediffusion export CHECKPOINT -o BUNDLE --size 512x512 --size 384x384
    python benchmarks/size_switch.py BUNDLE --json benchmarks/results/MACHINE/sizes.json

One pipeline makes pictures of one step, of each size in turn, on the device ``cpu``. The first
round fills the engine cache and does not count. Loading and the rest are both of the same picture,
so their ratio holds on a busy machine.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import edgediffusion as ed
from benchmarks.paired import estimate
from benchmarks.reports import Report, bundle_facts, head, markdown, write_report
from edgediffusion.bundle import say_size
from edgediffusion.errors import RequestError

SCHEMA: Final = "edgediffusion-sizes/1"
STEPS: Final = 1
WEIGHTS: Final = "/weights.safetensors"


def disk_bytes(bundle: ed.Bundle) -> dict[str, int]:
    """Bytes of the weights, which all sizes share, and of each size's graphs."""
    files = bundle.manifest.files
    sizes = {
        say_size(size): [
            file
            for component in bundle.manifest.components.values()
            for graph in component.graphs
            if graph.size == size
            for file in (graph.file, *([graph.fp32.file] if graph.fp32 else []))
        ]
        for size in bundle.manifest.sizes
    }
    weights = sum(spec.size for name, spec in files.items() if name.endswith(WEIGHTS))
    return {"weights": weights} | {
        name: sum(files[file].size for file in graphs) for name, graphs in sizes.items()
    }


def measure(bundle: ed.Bundle, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of loading, and of the rest of the picture, by size; a fresh engine cache."""
    sizes = bundle.manifest.sizes
    samples: dict[str, dict[str, list[float]]] = {
        say_size(size): {"load_ms": [], "rest_ms": []} for size in sizes
    }
    with ed.Pipeline.open(bundle.path, device="cpu") as pipe:
        for index in range(rounds + 1):
            for size in sizes:
                timings = pipe.generate(
                    ed.Request(prompt="", seed=1, steps=STEPS, size=size)
                ).timings
                load = timings.stages["load"]
                if index:
                    samples[say_size(size)]["load_ms"].append(round(load, 3))
                    samples[say_size(size)]["rest_ms"].append(round(timings.total - load, 3))
    return samples


def sizes_table(report: Mapping[str, Any]) -> str:
    """A report as Markdown."""
    weights = report["bytes"]["weights"]
    rows = []
    for size, samples in report["samples"].items():
        load, rest = (estimate(samples[name]) for name in ("load_ms", "rest_ms"))
        rows.append(
            [
                size,
                f"{report['bytes'][size] / weights:.3f}",
                f"{load.median:,.0f} ({load.low:,.0f} to {load.high:,.0f})",
                f"{rest.median:,.0f}",
            ]
        )
    columns = [
        "size",
        "its graphs, over all weights on disk",
        "switching to it, ms",
        "the rest, ms",
    ]
    facts = report["machine"]
    return (
        f"`{report['bundle']['name']}`, weights {weights / 2**20:,.1f} MiB on disk, pictures of "
        f"{report['steps']} step on {facts['cores']} cores of {facts['cpu']}, median of "
        f"{report['rounds']} rounds with 95 % intervals: `python benchmarks/size_switch.py`.\n\n"
        + markdown(columns, rows)
    )


def main(
    bundle: str,
    out: Annotated[Path | None, typer.Option("--json")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 10,
) -> None:
    """Measure a bundle of several sizes; print a table."""
    opened = ed.Bundle.open(bundle)
    if len(opened.manifest.sizes) < 2:
        raise RequestError(f"{bundle} has one size: export it with --size twice")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        os.environ["EDGEDIFFUSION_CACHE"] = cache
        samples = measure(opened, rounds)
    counts = {"steps": STEPS, "rounds": rounds}
    report: Report = head(SCHEMA) | bundle_facts(opened) | counts
    report |= {"bytes": disk_bytes(opened), "samples": samples}
    print(sizes_table(report))
    if out is not None:
        write_report(out, report)


if __name__ == "__main__":
    typer.run(main)
