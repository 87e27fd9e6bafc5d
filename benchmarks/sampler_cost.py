"""What a sampler's arithmetic costs: microseconds of a step, the model and fresh noise apart.

    python benchmarks/sampler_cost.py --json benchmarks/results/MACHINE/sampler_cost.json

Each sampler makes 20 steps of guidance batch 2 of Stable Diffusion's latents, (2, 4, 64, 64), round
by round; the model returns a ready array. What is timed is everything else between two latents.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray

import edgediffusion as ed
from edgediffusion.files import write_atomically
from edgediffusion.machine import machine_facts
from edgediffusion.options import NAMES
from edgediffusion.scheduler_classes import SCHEDULERS
from edgediffusion.timing import summarize

SHAPE: Final = (2, 4, 64, 64)
STEPS: Final = 20
SDE: Final = "dpmpp_sde"  # draws from a Brownian path that cannot be replaced: its noise is in


def schedule(sampler: str) -> ed.Schedule:
    """A sampler's table, for the kind of model that it is for."""
    name = NAMES[sampler].scheduler
    config: dict[str, Any] = {"_class_name": name}
    if "beta_schedule" in SCHEDULERS[name].defaults:
        config |= {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    seed = {"noise_sampler_seed": 0} if sampler == SDE else {}
    return ed.schedule_from_config(config, STEPS, sampler=sampler, **seed)


def steps(table: ed.Schedule) -> Iterator[float]:
    """Microseconds of each step of one run, the first ones left out: they warm up."""
    noise, raw, fresh = (ed.randn(SHAPE, seed) for seed in range(3))

    def model(x: NDArray[np.float32], timestep: float) -> NDArray[np.float32]:
        return raw

    last = time.perf_counter_ns()
    for i, _ in enumerate(ed.sample(table, model, noise, rng=lambda shape: fresh)):
        now = time.perf_counter_ns()
        if i >= 4:
            yield (now - last) / 1e3
        last = time.perf_counter_ns()


def main(out: Annotated[Path | None, typer.Option("--json")] = None, rounds: int = 10) -> None:
    """Time every sampler, interleaved, and print medians."""
    tables = {name: schedule(name) for name in NAMES}
    samples: dict[str, list[float]] = {name: [] for name in tables}
    for _ in range(rounds):
        for name, table in tables.items():
            samples[name] += steps(table)
    source = ed.TorchCpuNoise(0)
    samples["fresh noise"] = []
    for _ in range(10 * rounds):
        start = time.perf_counter_ns()
        source(SHAPE)
        samples["fresh noise"].append((time.perf_counter_ns() - start) / 1e3)
    for name, values in samples.items():
        s = summarize(values)
        print(f"{name:20} {s.median:8.1f} us (p90 {s.p90:.1f}, min {min(values):.1f})")
    if out is not None:
        rounded = {name: [round(value, 1) for value in values] for name, values in samples.items()}
        report = {"shape": SHAPE, "steps_us": rounded, "machine": machine_facts()}
        write_atomically(out, json.dumps(report).encode() + b"\n")


if __name__ == "__main__":
    typer.run(main)
