"""Which of the UNet's graphs each call of a run takes: the savings that a request may ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgediffusion.levels import Level
from edgediffusion.manifest import DEEP, PLAIN, SHALLOW

EVERYWHERE: Final = (0.0, float("inf"))


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the model.

    guided : whether the negative prompt takes part.
    kind : of the graph: ``plain``, or ``deep`` and ``shallow`` with DeepCache.
    """

    guided: bool
    kind: str = PLAIN


@dataclass(frozen=True, kw_only=True)
class Savings:
    """What may be left out of a run, each at a price in quality; the default leaves out nothing.

    guidance_interval : noise levels sigma / alpha between which there is guidance, the upper one
        included (Kynkäänniemi et al. 2024, arXiv:2404.07724).
    deepcache_interval : every so many calls run all of the UNet, those between take its deep
        features from the last of these (Ma et al. 2023, arXiv:2312.00858); 1 runs all of it always.
    deepcache_start : calls at the beginning that all run all of it.
    """

    guidance_interval: tuple[float, float] = EVERYWHERE
    deepcache_interval: int = 1
    deepcache_start: int = 0


def plan_calls(levels: Sequence[Level], savings: Savings, guided: bool) -> tuple[Call, ...]:
    """Choose the graph for a call at each of these noise levels.

    guided : whether the run has guidance at all.
    """
    flags = [guided and _within(level, savings.guidance_interval) for level in levels]
    if savings.deepcache_interval == 1:
        return tuple(Call(flag) for flag in flags)
    calls: list[Call] = []
    kept_guided = False  # whether the kept features have a row for the negative prompt
    for index, flag in enumerate(flags):
        since = index - savings.deepcache_start
        deep = since < 0 or since % savings.deepcache_interval == 0 or (flag and not kept_guided)
        if deep:
            kept_guided = flag
        calls.append(Call(flag, DEEP if deep else SHALLOW))
    return tuple(calls)


def _within(level: Level, interval: tuple[float, float]) -> bool:
    noise = level.sigma / level.alpha if level.alpha else float("inf")
    return interval[0] < noise <= interval[1]
