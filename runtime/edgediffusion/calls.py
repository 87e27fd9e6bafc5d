"""Which of the UNet's graphs each call of a run takes: the savings that a request may ask for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from edgediffusion.levels import Level
from edgediffusion.manifest import DEEP, PLAIN, SHALLOW

EVERYWHERE: Final = (0.0, float("inf"))


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the model.

    guided : whether the negative prompt takes part.
    kind : of the graph: ``plain``, or ``deep`` and ``shallow`` with DeepCache.
    kept : whether the guidance of the last guided call is added again.
    """

    guided: bool
    kind: str = PLAIN
    kept: bool = False


@dataclass(frozen=True, kw_only=True)
class Savings:
    """What may be left out of a run, each at a price in quality; the default leaves out nothing.

    guidance_interval : noise levels sigma / alpha between which there is guidance, the upper one
        included (Kynkäänniemi et al. 2024, arXiv:2404.07724).
    guidance_every : of the calls with guidance, every so many run the negative prompt, those
        between add the difference that the last of these found (after Lv et al. 2024,
        arXiv:2410.19355, and Castillo et al. 2023, arXiv:2312.12487); 1 runs it always.
    deepcache_interval : every so many calls run all of the UNet, those between take its deep
        features from the last of these (Ma et al. 2023, arXiv:2312.00858); 1 runs all of it always.
    deepcache_start : calls at the beginning that all run all of it.
    """

    guidance_interval: tuple[float, float] = EVERYWHERE
    guidance_every: int = 1
    deepcache_interval: int = 1
    deepcache_start: int = 0


def plan_calls(levels: Sequence[Level], savings: Savings, guided: bool) -> tuple[Call, ...]:
    """Choose the graph for a call at each of these noise levels.

    guided : whether the run has guidance at all.
    """
    calls = _guidance(levels, savings) if guided else [Call(False) for _ in levels]
    return tuple(_kinds(calls, savings) if savings.deepcache_interval > 1 else calls)


def _guidance(levels: Sequence[Level], savings: Savings) -> Iterator[Call]:
    """Which calls run the negative prompt, and which add what the last of these found."""
    since = 0
    for level in levels:
        if not _within(level, savings.guidance_interval):
            yield Call(False)
            continue
        guided = since % savings.guidance_every == 0
        yield Call(guided, kept=not guided)
        since += 1


def _kinds(calls: Iterable[Call], savings: Savings) -> Iterator[Call]:
    """Which calls run all of the UNet."""
    has_negative = False  # whether the kept features have a row for the negative prompt
    for index, call in enumerate(calls):
        since = index - savings.deepcache_start
        lacks = call.guided and not has_negative
        deep = since < 0 or since % savings.deepcache_interval == 0 or lacks
        if deep:
            has_negative = call.guided
        yield replace(call, kind=DEEP if deep else SHALLOW)


def _within(level: Level, interval: tuple[float, float]) -> bool:
    noise = level.sigma / level.alpha if level.alpha else float("inf")
    return interval[0] < noise <= interval[1]
