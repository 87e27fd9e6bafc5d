"""Measure several pieces of work round by round, so that all of them meet the same weather."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Final

from edgediffusion.timing import time_call

ANCHOR: Final = "anchor"
REST_S: Final = 0.05
"""Idle threads of math libraries spin for some milliseconds; the next in turn must not pay."""


def measure(
    workloads: Mapping[str, Callable[[], object]],
    rounds: int,
    on_progress: Callable[[str], None] = lambda _: None,
    rest_s: float = REST_S,
    clock: Callable[[], int] = time.perf_counter_ns,
    *,
    warmup: int = 1,
    anchor: Callable[[], float] | None = None,
) -> dict[str, list[float]]:
    """Return milliseconds of each workload by ``clock``, one entry for each round.

    ``warmup`` rounds before the first are thrown away. The order turns by one from round to round,
    so that nobody always follows the same neighbour. ``anchor`` takes a sample of its own before
    every turn; the median of a round is kept as ANCHOR. Ctrl-C ends the measuring and keeps the
    whole rounds; where there is none yet, it goes on as KeyboardInterrupt.
    """
    names = list(workloads)
    kept = names if anchor is None else [*names, ANCHOR]
    samples: dict[str, list[float]] = {name: [] for name in kept}
    try:
        for index in range(-warmup, rounds):
            phase = f"round {index + 1} of {rounds}" if index >= 0 else "warm-up"
            found, turns = {}, []
            for name in rotated(names, index):
                on_progress(f"{phase}: {name}")
                if anchor is not None:
                    turns.append(anchor())
                time.sleep(rest_s)
                found[name] = time_call(workloads[name], clock)
            if turns:
                found[ANCHOR] = statistics.median(turns)
            if index >= 0:
                for name in kept:
                    samples[name].append(found[name])
    except KeyboardInterrupt:
        if not all(samples.values()):
            raise
        on_progress("interrupted: the whole rounds are kept")
    whole = min(map(len, samples.values()), default=0)
    return {name: each[:whole] for name, each in samples.items()}


def rotated(names: list[str], turn: int) -> list[str]:
    """Another one begins in every round."""
    first = turn % len(names) if names else 0
    return names[first:] + names[:first]
