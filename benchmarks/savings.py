"""What each way to save time costs in quality, on the demo: right pictures, PSNR, time.

    edgediffusion export models/shapes/checkpoint -o DIR --size 128x128 --deepcache
    python benchmarks/savings.py DIR --json benchmarks/results/MACHINE/savings.json

Every held-out caption is made in every way from the same seed, one way after the other, so times
compare within a caption. models/shapes/judge.py says which pictures are wholly right; PSNR is to
the picture that the same steps make with nothing left out. A run that was broken off goes on where
it was.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
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
from benchmarks.reports import write_report
from benchmarks.sameness import psnr_db
from edgediffusion.machine import machine_facts

SCHEMA: Final = "edgediffusion-savings/1"
ALL: Final = "nothing left out"
WAYS: Final[Mapping[str, Mapping[str, Any]]] = {
    ALL: {},
    "guidance up to noise 5": {"guidance_interval": (0.0, 5.0)},
    "guidance above noise 0.3": {"guidance_interval": (0.3, float("inf"))},
    "guidance above noise 1": {"guidance_interval": (1.0, float("inf"))},
    "guidance every 2 steps": {"guidance_every": 2},
    "deepcache 2": {"deepcache_interval": 2},
    "deepcache 3": {"deepcache_interval": 3},
    "deepcache 3 after 4 steps": {"deepcache_interval": 3, "deepcache_start": 4},
    "deepcache 5": {"deepcache_interval": 5},
    "tiny decoder": {"decoder": "tiny"},
    "12 steps": {"steps": 12},
    "8 steps": {"steps": 8},
    "10 steps": {"steps": 10},
    "10 steps of dpmpp_2s": {"steps": 10, "sampler": "dpmpp_2s"},
    "10 steps, guidance above noise 1.5": {"steps": 10, "guidance_interval": (1.5, float("inf"))},
    "preset fast": {"preset": "fast", "steps": None},
}
SAVE_EVERY: Final = 25

Way = tuple[ed.Pipeline, Mapping[str, Any]]
"""What makes pictures, and what it is asked for beside the caption."""

console = Console(stderr=True)


def main(
    bundle: str,
    out: Annotated[Path, typer.Option("--json")] = Path("savings.json"),
    number: int = 1000,
) -> None:
    """Fill the table, caption by caption."""
    with ed.Pipeline.open(bundle, device="cpu") as pipe:
        make_all(out, {name: (pipe, options) for name, options in WAYS.items()}, number)


def make_all(out: Path, ways: Mapping[str, Way], number: int) -> None:
    """Make captions in all ways, from where the report in ``out`` ends; keep it every now and then.

    The first way is what the others are compared with.
    """
    from sampling import draw_captions

    report = begin(out, ways)
    captions = draw_captions(number, held_out=True)
    done = len(next(iter(report["ways"].values()))["ms"])
    for seed in track(range(done, number), "captions", console=console):
        add(report, ways, captions[seed], seed)
        if seed % SAVE_EVERY == SAVE_EVERY - 1 or seed == number - 1:
            write_report(out, report)


def difference(right: list[bool], base: list[bool]) -> tuple[float, float, float]:
    """How much larger the share of right pictures is, with its 95 % interval.

    The captions and seeds are the same, so the bootstrap (seeded) draws pairs.
    """
    pairs = np.asarray(right, float) - np.asarray(base, float)
    drawn = np.random.default_rng(0).integers(len(pairs), size=(4000, len(pairs)))
    low, high = np.quantile(pairs[drawn].mean(axis=1), (0.025, 0.975))
    return float(pairs.mean()), float(low), float(high)


def begin(out: Path, ways: Mapping[str, Way]) -> dict[str, Any]:
    """The report so far where it is of this bundle and these ways, else an empty one."""
    options = {name: {k: str(v) for k, v in way.items()} for name, (_, way) in ways.items()}
    pipe, _ = next(iter(ways.values()))
    facts = {"schema": SCHEMA, "bundle_sha256": pipe.bundle.sha256, "options": options}
    if out.exists():
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        if found.items() >= facts.items():
            return found
    empty: dict[str, Any] = {name: {"ms": [], "right": [], "psnr_db": []} for name in ways}
    return {**facts, "machine": machine_facts(), "ways": empty}


def add(report: dict[str, Any], ways: Mapping[str, Way], caption: Any, seed: int) -> None:
    """Make one caption in every way. The first of all runs is done twice: it loads the graphs."""
    from judge import judge

    whole = None
    for name, (pipe, way) in ways.items():
        request = ed.Request(**({"prompt": str(caption), "seed": seed, "steps": 20} | way))
        if not report["ways"][name]["ms"]:
            pipe.generate(request)
        result = pipe.generate(request)
        picture = result.images[0]
        whole = picture if whole is None else whole
        found = report["ways"][name]
        found["ms"].append(round(result.timings.total, 3))
        found["right"].append(all(judge(picture, caption).values()))
        error = psnr_db(picture, whole)
        found["psnr_db"].append(round(error, 2) if np.isfinite(error) else None)


if __name__ == "__main__":
    typer.run(main)
