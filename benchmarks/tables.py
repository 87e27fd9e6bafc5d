"""Write the figures in README.md and models/README.md from the committed results.

    python benchmarks/tables.py            # rewrite the pages
    python benchmarks/tables.py --check    # exit 1 where a page does not say what the results say

A page marks a place with ``<!-- NAME -->``, and what stands between it and ``<!-- /NAME -->`` is
made here. So no figure is typed by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.decoder_tiles import tiles_table
from benchmarks.device_ratios import devices_table, starts_table
from benchmarks.exports import exports_table
from benchmarks.gpu_tables import layout
from benchmarks.int8_table import int8_steps_table
from benchmarks.lesser_cpus import lesser_cpus_table
from benchmarks.memory import memory_table
from benchmarks.paired import estimate, ratios
from benchmarks.peers_table import peers_summary, peers_table
from benchmarks.plan_builds import plans_report
from benchmarks.reports import ROOT, Report
from benchmarks.reports import markdown as table
from benchmarks.rewrites_table import rewrites_table
from benchmarks.roofline import roofline_table
from benchmarks.savings import difference
from benchmarks.size_switch import sizes_table
from benchmarks.spinning import spinning_table
from benchmarks.throughput import throughput_table
from edgediffusion.timing import summarize

RESULTS: Final = ROOT / "benchmarks" / "results" / "xeon-avx512-2core"
ZEN4: Final = ROOT / "benchmarks" / "results" / "epyc-zen4-2core"
"""A second machine: an AMD CPU, which has fast bf16."""
PAGES: Final = tuple(
    ROOT / page
    for page in (
        "README.md",
        "models/README.md",
        "models/shapes/README.md",
        "docs/samplers.md",
        "docs/speed.md",
        "docs/devices.md",
        "docs/cuda.md",
        "docs/tensorrt.md",
        "docs/memory.md",
        "docs/benchmarks.md",
    )
)


def read(path: Path) -> Any:
    """Read a results file."""
    return json.loads(path.read_text(encoding="utf-8"))


def where_measured(name: str, render: Callable[[Report], str], folder: Path = RESULTS) -> str:
    """Render a results file; a page may have the place for one that is not measured yet."""
    path = folder / name
    return render(read(path)) if path.is_file() else f"Not measured yet: `{name}` is missing."


def plots(folder: Path = RESULTS / "plots") -> str:
    """The committed drawings, as the pages in docs/ see them."""
    there = folder.relative_to(ROOT).as_posix()
    drawn = sorted(path.name for path in folder.glob("*.svg"))
    return "\n\n".join(f"`{name}`\n\n![{name}](../{there}/{name})" for name in drawn)


def latency() -> str:
    """Medians of the demo."""
    report = read(RESULTS / "shapes.json")
    rows = [[f"`{name}`", reading(samples)] for name, samples in report["samples_ms"].items()]
    facts = report["machine"]
    rows += [
        ["runtime's own share of a step", f"{summarize(report['own_share']).median:.2%}"],
        ["peak memory of the run", f"{report['peak_memory_mib']:,.0f} MiB"],
    ]
    return (
        f"Median (p90) in milliseconds, fp32, ONNX Runtime {facts['libraries']['onnxruntime']}, "
        f"{facts['cores']} cores of {facts['cpu']} (shared and noisy); `end_to_end` is a picture "
        f"of {report['options']['steps']} steps with guidance, `cold_start` a fresh process up to "
        "its first picture of four steps, `import` its part for `import edgediffusion`. Raw "
        "samples: `benchmarks/results/`.\n\n" + table(["", "shapes 128x128"], rows)
    )


def reading(samples: list[float]) -> str:
    """A median with its 90th percentile."""
    s = summarize(samples)
    digits = 0 if s.median >= 100 else 2
    return f"{s.median:,.{digits}f} ({s.p90:,.{digits}f})"


def full_size() -> str:
    """What the full-size run measured."""
    figures = read(RESULTS / "full_size.json")
    stages, picture = figures["stages"], figures["picture"]
    worst = max(parity["l2"] for parity in figures["parity"].values())
    rows = [
        ["export", f"{stages['export']['seconds']:.0f} s, peak memory "
         f"{stages['export']['peak_memory_mib'] / 1024:.1f} GiB"],
        ["bundle", f"{figures['bundle_bytes'] / 2**30:.2f} GiB"],
        ["worst graph against PyTorch, L2", f"{worst:.1e}"],
        [f"final latents of a {picture['steps']}-step picture against diffusers, L2",
         f"{picture['latents_l2']:.1e}"],
        ["that picture, PSNR", f"{picture['psnr_db']:.1f} dB"],
        ["its standard deviation (0..255)", f"{picture['picture_std']:.1f}"],
        ["peak memory of making it", f"{stages['edgediffusion']['peak_memory_mib'] / 1024:.1f} GiB "
         f"(diffusers: {stages['diffusers']['peak_memory_mib'] / 1024:.1f} GiB)"],
    ]  # fmt: skip
    return table(["Stable Diffusion 1.5's architecture, random weights, 512x512", ""], rows)


def score() -> str:
    """The judge's verdict on the demo: wholly right pictures, and right attributes."""
    data = read(ROOT / "models/shapes/results/score.json")
    sets = [data["held_out"], data["seen"]]
    rows = []
    for group, bar in data["bar"].items():
        rows.append([f"**{group}**, bar {bar:.0%}", *(interval(each[group]) for each in sets)])
        for name in data["held_out"][group]["attributes"]:
            rates = (each[group]["attributes"][name] for each in sets)
            rows.append([f"{group}: {name}", *map(interval, rates)])
    missed = any(data["held_out"][group]["share"] < bar for group, bar in data["bar"].items())
    settings = data["settings"]
    head = ("**The bar is missed.** " if missed else "") + (
        f"{settings['number']:,} captions each, seeds 0 to {settings['number'] - 1}, "
        f"{settings['steps']} steps of {settings['sampler']}, guidance {settings['guidance']:g}, "
        "made by PyTorch in fp32. Wholly right pictures, then single attributes among the captions "
        "that name them, with 95 % Wilson intervals.\n\n"
    )
    return head + table(["", "held out of training", "seen in training"], rows)


def interval(rate: dict[str, Any]) -> str:
    """One rate with its interval and its count."""
    low, high = rate["interval"]
    return f"{rate['share']:.1%} ({low:.1%} to {high:.1%}, n={rate['of']})"


def sampler_cost() -> str:
    """Microseconds of a step's arithmetic."""
    figures = read(RESULTS / "sampler_cost.json")
    noise = summarize(figures["steps_us"].pop("fresh noise"))
    rows = []
    for name, samples in figures["steps_us"].items():
        s = summarize(samples)
        rows.append([f"`{name}`", f"{s.median:,.0f}", f"{s.p90:,.0f}"])
    return (
        f"Latents of shape {tuple(figures['shape'])}, one thread; drawing fresh noise on top: "
        f"{noise.median / 1e3:.1f} ms (in `dpmpp_sde` it is included, from its Brownian path). "
        "Command: `python benchmarks/sampler_cost.py`.\n\n"
        + table(["sampler", "median, microseconds", "p90"], rows)
    )


def sampler_parity() -> str:
    """How near the matrix of trajectories comes to diffusers."""
    figures = read(ROOT / "benchmarks/results/sampler_parity.json")
    rows = []
    for name, own in figures["classes"].items():
        worst = own["worst_against_float32"]
        others = own["rows_against_float64"] + own["rows_against_nearer"]
        cells = [own["rows"], f"{worst['error']:.1e}" if worst else "-", others, own["failed"]]
        rows.append([f"`{name}`", *(f"{c:,}" if isinstance(c, int) else c for c in cells)])
    head = ["diffusers class", "rows", "worst", "judged against float64", "missed"]
    return (
        f"{figures['rows']:,} rows against diffusers {figures['diffusers']}, PyTorch "
        f"{figures['torch']} on the CPU; {figures['refused_by_diffusers']:,} more that diffusers "
        "refuses or cannot finish. Command: `python -m tests.parity.report`.\n\n"
        + table(head, rows)
    )


def sampler_quality() -> str:
    """The judge's score by sampler and number of steps."""
    figures = read(ROOT / "benchmarks/results/sampler_quality.json")
    counts = list(next(iter(figures["right"].values())))
    rows = [
        [f"`{name}`", *(f"{row[n]:.0%}" if isinstance(row[n], float) else "-" for n in counts)]
        for name, row in figures["right"].items()
    ]
    return (
        f"Wholly right pictures among {figures['captions']} held-out captions of the demo, same "
        "seeds in every cell. Command: `python benchmarks/sampler_quality.py`.\n\n"
        + table(["sampler", *(f"{n} steps" for n in counts)], rows)
    )


def ways_table(figures: Report, script: str) -> str:
    """What each way to make pictures gains and costs beside the first."""
    ways = figures["ways"]
    base = next(iter(ways.values()))
    rows = []
    for name, way in ways.items():
        change, low, high = (100 * share for share in difference(way["right"], base["right"]))
        near = [value for value in way["psnr_db"] if value is not None]
        time = estimate(ratios(way["ms"], base["ms"]))
        first = way is base
        rows.append([
            name,
            f"{time.median:.2f} ({time.low:.2f} to {time.high:.2f})",
            f"{sum(way['right']) / len(way['right']):.1%}",
            "-" if first else f"{change:+.1f} ({low:+.1f} to {high:+.1f})",
            "-" if first else f"{summarize(near).median:.1f} dB",
        ])  # fmt: skip
    head = ["way", "time of a picture", "wholly right", "difference, points", "PSNR, median"]
    return (
        f"{len(base['right']):,} held-out captions of the demo, the same seeds in every way, "
        f"{figures['machine']['cores']} cores of {figures['machine']['cpu']}. Time is that of the "
        f"picture in the first row, made in the same minute; PSNR is to that picture. With "
        f"95 % intervals. Command: `python benchmarks/{script} shapes --number "
        f"{len(base['right'])}`.\n\n" + table(head, rows)
    )


TABLES: Final[dict[str, Callable[[], str]]] = {
    "latency": latency,
    "full_size": full_size,
    "score": score,
    "sampler_cost": sampler_cost,
    "sampler_parity": sampler_parity,
    "sampler_quality": sampler_quality,
    "savings": lambda: ways_table(read(RESULTS / "savings.json"), "savings.py"),
    "plots": plots,
    "int8": lambda: exports_table(read(RESULTS / "int8.json")),
    "int8_sd15": lambda: where_measured("int8_full_size.json", int8_steps_table),
    "tiles": lambda: where_measured("tiles.json", exports_table),
    "tiles_sd15": lambda: where_measured("tiles_sd15.json", exports_table),
    "devices": lambda: devices_table(read(RESULTS / "devices_shapes.json")),
    "starts": lambda: starts_table(read(RESULTS / "devices_shapes.json")),
    "spinning": lambda: spinning_table(read(RESULTS / "spinning.json")),
    "lesser_cpus": lambda: lesser_cpus_table(read(RESULTS / "lesser_cpus.json")),
    "devices_zen4": lambda: where_measured("devices_shapes.json", devices_table, ZEN4),
    "peers_sd15_zen4": lambda: where_measured("peers_sd15.json", peers_table, ZEN4),
    "peers_sd15_fast_zen4": lambda: where_measured("peers_sd15_fast.json", peers_table, ZEN4),
    "arithmetic_zen4": lambda: where_measured(
        "arithmetic.json", lambda report: ways_table(report, "arithmetic.py"), ZEN4
    ),
    "gpu_layout": layout,
    "peers_shapes": lambda: where_measured("peers_shapes.json", peers_table),
    "peers_summary": lambda: peers_summary(
        read(RESULTS / "peers_sd15.json"), read(RESULTS / "peers_shapes.json")
    ),
    "peers_sd15": lambda: where_measured("peers_sd15.json", peers_table),
    "peers_sd15_fast": lambda: where_measured("peers_sd15_fast.json", peers_table),
    "throughput_shapes": lambda: where_measured("throughput_shapes.json", throughput_table),
    "plan_builds": lambda: "\n\n".join(
        plans_report(read(RESULTS / f"plan_builds_{model}.json")) for model in ("sd15", "shapes")
    ),
    "memory_sd15": lambda: where_measured("memory_sd15.json", memory_table),
    "rewrites": lambda: rewrites_table(read(RESULTS / "rewrites.json")),
    "roofline_sd15": lambda: roofline_table(read(RESULTS / "roofline_sd15.json")),
    "memory_shapes": lambda: memory_table(read(RESULTS / "memory_shapes.json")),
    "sizes_shapes": lambda: where_measured("sizes_shapes.json", sizes_table),
    "decoder_tiles": lambda: tiles_table(read(RESULTS / "decoder_tiles.json")),
    "roofline_shapes": lambda: roofline_table(read(RESULTS / "roofline_shapes.json")),
}


def rendered(text: str) -> str:
    """The page with every table made anew."""
    for name, make in TABLES.items():
        place = re.compile(rf"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)
        if place.search(text):
            made = f"<!-- {name} -->\n{make()}\n<!-- /{name} -->"
            text = place.sub(lambda _, made=made: made, text)  # type: ignore[misc]
    return text


def main(arguments: list[str]) -> int:
    """Rewrite the pages, or check them."""
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if rendered(text) != text:
            stale.append(page)
            if "--check" not in arguments:
                page.write_text(rendered(text), encoding="utf-8")
    for page in stale:
        print(f"{'stale' if '--check' in arguments else 'rewritten'}: {page.relative_to(ROOT)}")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
