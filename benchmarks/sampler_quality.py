"""Which sampler is good at which number of steps: the judge's score on the demo bundle.

    python benchmarks/sampler_quality.py --json benchmarks/results/sampler_quality.json

Every sampler that fits the demo makes the same held-out captions from the same seeds, through the
runtime, and models/shapes/judge.py says which pictures are wholly right. A run that was broken off
goes on where it was; the file is written after each cell of the table.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

import edgediffusion as ed
from edgediffusion.files import write_atomically
from edgediffusion.options import NAMES

SHAPES: Final = Path(__file__).resolve().parents[1] / "models" / "shapes"
sys.path.insert(0, str(SHAPES))  # its scripts import each other as a script's neighbours do

STEPS: Final = (4, 8, 12, 20, 50)
UNFIT: Final = ("EDM", "Flow", "IPNDM", "LCM", "TCD")  # classes for models of another training
ALIASES: Final = ("dpm_multistep", "dpm_singlestep", "plms")  # for the demo the same as another

console = Console(stderr=True)


def fitting() -> list[str]:
    """The samplers for a latent model that predicts epsilon and was not distilled."""
    return [n for n in NAMES if n not in ALIASES and not NAMES[n].scheduler.startswith(UNFIT)]


def share_right(sampler: str, steps: int, number: int) -> float | str:
    """The share of wholly right pictures, or why the sampler cannot make so few steps."""
    from judge import judge
    from sampling import draw_captions

    right = 0
    pipe = demo()
    for seed, caption in enumerate(draw_captions(number, held_out=True)):
        request = ed.Request(prompt=str(caption), steps=steps, seed=seed, sampler=sampler)
        try:
            picture = pipe.generate(request).images[0]
        except (ed.RequestError, ed.ScheduleError) as error:
            return str(error)
        except ed.NumericalError:  # a flat picture, or none: certainly not right
            continue
        right += all(judge(picture, caption).values())
    return right / number


@cache
def demo() -> ed.Pipeline:
    """The demo on one core, opened once in each process."""
    return ed.Pipeline.open("shapes", device="cpu", threads=1)


def main(
    out: Annotated[Path, typer.Option("--json")] = Path("sampler_quality.json"),
    number: int = 100,
    jobs: int = os.cpu_count() or 1,
) -> None:
    """Fill the table, cell by cell."""
    facts = {"captions": number, "bundle_sha256": ed.Bundle.open("shapes").sha256}
    report: dict[str, Any] = {**facts, "right": {name: {} for name in fitting()}}
    if out.exists():
        found = json.loads(out.read_text(encoding="utf-8"))
        report = found if found.items() >= facts.items() else report
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        cells = {
            pool.submit(share_right, sampler, steps, number): (sampler, steps)
            for sampler, row in report["right"].items()
            for steps in STEPS
            if str(steps) not in row
        }
        for done, future in enumerate(as_completed(cells), 1):
            sampler, steps = cells[future]
            report["right"][sampler][str(steps)] = future.result()
            console.print(f"{done}/{len(cells)} {sampler}, {steps} steps: {future.result()}")
            write_atomically(out, json.dumps(in_order(report), indent=1).encode() + b"\n")


def in_order(report: dict[str, Any]) -> dict[str, Any]:
    """The report with its columns by number of steps, whichever was done first."""
    rows = {
        name: {str(steps): row[str(steps)] for steps in STEPS if str(steps) in row}
        for name, row in report["right"].items()
    }
    return report | {"right": rows}


if __name__ == "__main__":
    typer.run(main)
