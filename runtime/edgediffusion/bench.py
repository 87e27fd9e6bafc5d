"""Latency per step of one bundle on this machine: the small tool, without peers.

What is timed: each graph by itself, the sampler's arithmetic by itself, whole pictures, and,
apart, cold starts in fresh processes. The workloads are interleaved round by round, because on a
shared machine two minutes are not comparable, and an anchor, a fixed piece of work, is repeated
between them, by which two runs can be compared. Raw samples are kept; medians are for reading.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from edgediffusion.anchor import Anchor
from edgediffusion.bundle import Bundle, say_size
from edgediffusion.engine import Engine
from edgediffusion.errors import EngineError, RequestError
from edgediffusion.golden import golden_inputs, read_tensors
from edgediffusion.machine import machine_facts, peak_memory_mib
from edgediffusion.manifest import PLAIN, TEXT_ENCODERS
from edgediffusion.noise import noise_source
from edgediffusion.pipeline import Pipeline
from edgediffusion.request import Request
from edgediffusion.rounds import ANCHOR, measure
from edgediffusion.samplers import trajectory
from edgediffusion.schedule import schedule_from_config

SCHEMA: Final = "edgediffusion-bench/1"
_PROMPT: Final = "a red circle above a blue square"
_ENGINES: Final = (*TEXT_ENCODERS, "unet", "vae_decoder", "vae_tiny_decoder")

_COLD_START: Final = """
import sys, time
start = time.perf_counter()
import edgediffusion as ed
imported = 1e3 * (time.perf_counter() - start)
bundle, device, steps, threads = sys.argv[1:]
with ed.Pipeline.open(bundle, device=device, threads=int(threads)) as pipe:
    pipe.generate(ed.Request(prompt="a red circle", steps=int(steps), seed=0))
print(time.time_ns(), imported)
"""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure and how often.

    rounds, warmup : measured and discarded runs of every workload.
    steps : steps of the end-to-end picture.
    cold_starts : fresh processes, each timed from its start to its first picture.
    """

    rounds: int = 20
    warmup: int = 3
    steps: int = 20
    cold_starts: int = 3
    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("warmup", 0), ("steps", 1), ("cold_starts", 0)):
            if getattr(self, name) < least:
                raise RequestError(f"{name} must be at least {least}, got {getattr(self, name)}")


def bench(
    bundle: Bundle, options: BenchOptions, on_progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Measure a bundle; return raw samples and facts as JSON-ready data.

    ``samples_ms`` maps workloads to milliseconds; ``own_share`` holds, for each measured step,
    the part of it that was not spent in the engine. Ctrl-C ends the measuring and keeps the whole
    rounds, if there are any: ``complete`` is then False.
    """
    size = bundle.manifest.sizes[0]
    own_shares: list[list[float]] = []  # of each picture
    with Pipeline.open(bundle.path, device=options.device, threads=options.threads) as pipe:
        on_progress("first picture")
        _picture(pipe, options.steps, own_shares)
        peak = peak_memory_mib()  # of making pictures; measuring loads one more graph
        anchor = Anchor()
        workloads = _engine_workloads(pipe, size)
        workloads["sampler_step"] = _sampler_workload(bundle, options.steps)
        workloads["end_to_end"] = partial(_picture, pipe, options.steps, own_shares)
        own_shares.clear()
        samples = measure(
            workloads,
            options.rounds,
            on_progress,
            warmup=options.warmup,
            anchor=anchor.sample,
        )
        device = {"device": pipe.device, "device_reason": pipe.device_reason}
    anchor_ms = samples.pop(ANCHOR)
    complete = len(anchor_ms) == options.rounds
    measured = own_shares[options.warmup :][: len(anchor_ms)]
    samples["sampler_step"] = [ms / options.steps for ms in samples["sampler_step"]]
    for _ in range(options.cold_starts if complete else 0):
        on_progress("cold start")
        for name, ms in _cold_start(bundle, options).items():
            samples.setdefault(name, []).append(ms)
    return {
        "schema": SCHEMA,
        "timed": "engine calls alone; sampler arithmetic alone; end_to_end = tokenize to pixels",
        "not_timed": "graph loading and bundle checks, except in cold_start",
        "bundle": {"name": bundle.manifest.name, "sha256": bundle.sha256, "size": say_size(size)},
        "options": asdict(options) | device,
        "machine": machine_facts(),
        "complete": complete,
        "anchor": {"identity": anchor.identity, "samples_ms": anchor_ms},
        "samples_ms": samples,
        "own_share": [share for shares in measured for share in shares],
        "peak_memory_mib": peak,
    }


def _engine_workloads(pipe: Pipeline, size: tuple[int, int]) -> dict[str, Callable[[], object]]:
    """One call of each graph of the default size, on its own golden inputs."""
    workloads: dict[str, Callable[[], object]] = {}
    components = pipe.bundle.manifest.components
    for name in _ENGINES:
        if name not in components:
            continue
        tensors = read_tensors(pipe.bundle.file(components[name].golden))
        for graph in components[name].graphs:
            if graph.size in (None, size) and graph.variant == PLAIN:
                engine = pipe.engine(name, graph.batch, size)
                inputs = golden_inputs(graph.golden[0], graph, tensors)
                label = f"{name}_b{graph.batch}" if name == "unet" else name
                workloads[label] = partial(_call, engine, inputs)
    return workloads


def _call(engine: Engine, inputs: Mapping[str, np.ndarray[Any, Any]]) -> object:
    return engine(**inputs)


def _sampler_workload(bundle: Bundle, steps: int) -> Callable[[], object]:
    """All steps of the default sampler around a model that costs nothing."""
    schedule = schedule_from_config(bundle.manifest.scheduler, steps=steps)
    height, width = bundle.manifest.sizes[0]
    scale = bundle.manifest.latent.downsampling
    shape = (1, bundle.manifest.latent.channels, height // scale, width // scale)
    prediction = np.zeros(shape, np.float32)

    def run() -> object:
        noise = noise_source([0])
        steps = trajectory(schedule, lambda sample, timestep: prediction, noise(shape), rng=noise)
        return [step.latents for step in steps]

    return run


def _picture(pipe: Pipeline, steps: int, own_shares: list[list[float]]) -> object:
    result = pipe.generate(Request(prompt=_PROMPT, steps=steps, seed=0))
    timings = result.timings
    both = zip(timings.unet, timings.step, strict=True)
    own_shares.append([1 - unet / step for unet, step in both])
    return result


def _cold_start(bundle: Bundle, options: BenchOptions) -> dict[str, float]:
    """Time a fresh process: ``import edgediffusion``, and all up to a picture of four steps."""
    arguments = [str(bundle.path), options.device, "4", str(options.threads)]
    start = time.time_ns()
    child = subprocess.run(
        [sys.executable, "-c", _COLD_START, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if child.returncode != 0:
        raise EngineError(f"a cold start failed: {child.stderr.strip().splitlines()[-1:]}")
    end, imported = child.stdout.split()
    return {"import": float(imported), "cold_start": (int(end) - start) / 1e6}
