"""Clocks and statistics: the one place that both the pipeline and the benchmarks use.

Standard library only: the benchmarks load this file by its path in environments that have no
edgediffusion, so that every contender is timed by the same clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Milliseconds of one run.

    stages : time of each stage by name (load, tokenize, text_encoder, vae_decoder).
    step : time of each sampler step, the UNet included; excludes what the caller did between.
    unet : time inside the UNet engine, one entry for each step.
    """

    stages: dict[str, float]
    step: tuple[float, ...]
    unet: tuple[float, ...]

    @property
    def total(self) -> float:
        """Everything together."""
        return sum(self.stages.values()) + sum(self.step)

    @property
    def own_share(self) -> float:
        """The part of the steps that is not spent in the engine: the runtime's own cost, 0 to 1."""
        return 1 - sum(self.unet) / sum(self.step)


@dataclass
class Stopwatch:
    """Collect the time of named stages and of the steps of a loop."""

    clock: Callable[[], int] = time.perf_counter_ns
    stages: dict[str, float] = field(default_factory=dict)
    laps: list[float] = field(default_factory=list)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of a ``with`` block to a stage."""
        start = self.clock()
        try:
            yield
        finally:
            self.stages[stage] = self.stages.get(stage, 0.0) + (self.clock() - start) / 1e6

    def each(self, items: Iterator[T]) -> Iterator[T]:
        """Pass on ``items``, timing how long each took to come; the consumer's time is left out."""
        while True:
            start = self.clock()
            try:
                item = next(items)
            except StopIteration:
                return
            self.laps.append((self.clock() - start) / 1e6)
            yield item

    def timings(self, unet_ms: Sequence[float]) -> Timings:
        """Return what was collected."""
        return Timings(stages=dict(self.stages), step=tuple(self.laps), unet=tuple(unet_ms))


def time_call(run: Callable[[], object], clock: Callable[[], int] = time.perf_counter_ns) -> float:
    """Return the milliseconds that ``run`` took. It must not return before its work is done."""
    start = clock()
    run()
    return (clock() - start) / 1e6


@dataclass(frozen=True)
class Summary:
    """Median, 90th percentile, minimum and number of samples, in the samples' own unit."""

    median: float
    p90: float
    min: float
    count: int


def summarize(samples: Sequence[float]) -> Summary:
    """Summarize samples; raises ValueError when there are none."""
    if not samples:
        raise ValueError("no samples to summarize")
    ordered = sorted(samples)
    rank = 0.9 * (len(ordered) - 1)
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    p90 = ordered[low] + (rank - low) * (ordered[high] - ordered[low])
    return Summary(statistics.median(ordered), p90, ordered[0], len(ordered))
