"""Draw results files as SVG; the same file gives the same bytes.

    python benchmarks/plots.py benchmarks/results/MACHINE/shapes.json -o plots

The schema decides what is drawn: of peers and of ``edgediffusion bench`` the distribution of the
times of a UNet step and the time of a picture by its stages, of ``throughput.py`` the curves, of
``roofline.py`` the roofline.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import matplotlib as mpl
import numpy as np
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.paired import Estimate
from benchmarks.reports import Report, read_report, said_errors
from benchmarks.roofline import best_ceiling, rate
from benchmarks.throughput import KINDS, gain, pictures_per_second
from edgediffusion.files import write_atomically
from edgediffusion.timing import summarize

Drawing = Callable[[Report], Figure]

STYLE: Final[Any] = {
    "svg.hashsalt": "edgediffusion",  # ids of clips and markers; random otherwise
    "svg.fonttype": "none",  # text stays text, whatever fonts this machine has
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
STEPS: Final = 20
"""Steps of the picture whose stages are stacked."""


def to_svg(figure: Figure) -> bytes:
    """Write a figure without date or version, so that it only changes with what it shows."""
    target = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue()


def draw(report: Report) -> dict[str, Figure]:
    """Return every drawing of a report by its name."""
    with mpl.rc_context(STYLE):
        return {name: make(report) for name, make in DRAWINGS[report["schema"]].items()}


def step_latency(report: Report) -> Figure:
    """The distribution of a UNet step's time: a dot for each round, a bar for the median."""
    figure, axes = _axes("milliseconds a UNet call", len(_programs(report)))
    names: list[str] = []
    for name, samples in _programs(report).items():
        for stage in ("unet_b1", "unet_b2"):
            times = [ms for ms in samples.get(stage, []) if ms is not None]
            if times:
                _dots(axes, times, len(names))
                names.append(f"{name}\n{stage}")
    _label(axes, names)
    axes.set_xlim(left=0)
    return figure


def _dots(axes: Axes, times: Sequence[float], row: int) -> None:
    spread = np.linspace(-0.25, 0.25, len(times)) if len(times) > 1 else np.zeros(1)
    axes.scatter(times, row + spread, s=12, alpha=0.6, linewidths=0, color="C0")
    axes.vlines(summarize(times).median, row - 0.35, row + 0.35, color="C3", linewidth=2)


def stages(report: Report) -> Figure:
    """The median time of each stage of a picture of STEPS steps with guidance, stacked."""
    figure, axes = _axes(f"seconds of a picture of {STEPS} steps", len(_programs(report)))
    parts = {"text_encoder": 2, "unet_b2": STEPS, "scheduler": STEPS, "vae_decode": 1}
    names = [name for name, samples in _programs(report).items() if samples.get("unet_b2")]
    left = np.zeros(len(names))
    for stage, times in parts.items():
        found = [_programs(report)[name].get(stage, []) for name in names]
        width = np.array([times * _median(samples) / 1e3 for samples in found])
        axes.barh(range(len(names)), width, left=left, label=f"{times} x {stage}", height=0.6)
        left += width
    _label(axes, names)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _programs(report: Report) -> dict[str, Mapping[str, list[float | None]]]:
    """Samples by stage of every program of a report; a bench has one, with names of its own."""
    if report["schema"] == "edgediffusion-peers/1":
        return {
            name: contender["samples_ms"]
            for name, contender in report["contenders"].items()
            if any(contender.get("samples_ms", {}).values())
        }
    samples = report["samples_ms"]
    own = {"scheduler": samples.get("sampler_step"), "vae_decode": samples.get("vae_decoder")}
    return {report["options"]["device"]: samples | {k: v for k, v in own.items() if v}}


def _median(samples: Sequence[float | None]) -> float:
    """The median of what was measured, 0 where nothing was: a stage of no width."""
    times = [ms for ms in samples if ms is not None]
    return summarize(times).median if times else 0.0


def throughput_curve(report: Report) -> Figure:
    """Pictures a second against the batch size and the number of streams."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind in KINDS:
        names = [name for name in report["workloads"] if name.split()[0] == kind]
        counts = [int(name.split()[1]) for name in names]
        _curve(left, counts, [pictures_per_second(report, name) for name in names], kind)
        _curve(right, counts, [gain(report, name) for name in names], kind)
    for axes, what in ((left, "pictures a second"), (right, "rate over that of the first")):
        axes.set(xlabel="pictures or streams at once", ylabel=what, ylim=(0, None))
        axes.legend(frameon=False)
    return figure


def _curve(axes: Axes, counts: list[int], points: list[Estimate], label: str) -> None:
    medians = [point.median for point in points]
    known = all(point.high < float("inf") for point in points)
    below = [point.median - point.low for point in points]
    above = [point.high - point.median for point in points]
    error = (below, above) if known else None
    axes.errorbar(counts, medians, yerr=error, marker="o", capsize=3, label=label)


def roofline_plot(report: Report) -> Figure:
    """Every graph's rate against its intensity, under the machine's roofs."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    intensity = np.geomspace(1, 1000, 200)
    memory = best_ceiling(report, {"memory"})
    for arithmetic in sorted({graph["arithmetic"] for graph in report["graphs"].values()}):
        top = best_ceiling(report, {"matrix"}, arithmetic)
        if top and memory:
            peak, flow = rate(report["ceilings"][top]), rate(report["ceilings"][memory])
            label = f"{arithmetic}: {peak:,.0f} GFLOP/s, {flow:,.1f} GB/s"
            axes.plot(intensity, np.minimum(peak, flow * intensity), color="0.4", label=label)
    for index, (file, graph) in enumerate(report["graphs"].items()):
        work = sum(flops for kind, flops in graph["flops"].items() if kind != "other")
        x = work / (graph["weight_bytes"] + graph["activation_bytes"])
        axes.plot(x, work / 1e6 / _median(graph["samples_ms"]), f"C{index % 10}o", label=file)
    axes.set(xscale="log", yscale="log", xlabel="FLOP a byte", ylabel="GFLOP/s")
    axes.legend(frameon=False, fontsize="small")
    return figure


def _axes(label: str, rows: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 1.5 + 0.8 * rows), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(label)
    return figure, axes


def _label(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()


DRAWINGS: Final[Mapping[str, Mapping[str, Drawing]]] = {
    "edgediffusion-peers/1": {"step_latency": step_latency, "stages": stages},
    "edgediffusion-bench/1": {"step_latency": step_latency, "stages": stages},
    "edgediffusion-throughput/1": {"throughput": throughput_curve},
    "edgediffusion-roofline/1": {"roofline": roofline_plot},
}


def write_plots(source: Path, folder: Path) -> list[Path]:
    """Draw one results file into ``folder``; return the files. Raises RequestError."""
    report: dict[str, Any] = read_report(source, DRAWINGS)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in draw(report).items():
        written.append(folder / f"{source.stem}.{name}.svg")
        write_atomically(written[-1], to_svg(figure))
    return written


@said_errors()
def main(
    results: Annotated[list[Path], typer.Argument(help="Results files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")],
) -> None:
    """Draw results files as SVG; one that has no drawing is an error."""
    console = Console(highlight=False, soft_wrap=True)
    for source in results:
        for path in write_plots(source, output):
            console.print(escape(str(path)))


if __name__ == "__main__":
    typer.run(main)
