"""What two series of measurements allow to say, on a machine whose speed changes by the minute.

Times of two programs are only comparable round by round, so every statement here is about ratios:
of one sample to another of the same round. Within a run that other one is a rival; between two runs
it is the anchor, a fixed piece of work that every round repeats.

Intervals come from a seeded bootstrap of the median. Neighbouring rounds share their luck, so it
draws only as many rounds as the series has independent ones. In simulation, 20 rounds give an
interval that holds the true ratio of two runs 97 times of 100 where rounds are independent, and 92
where each is correlated with the next by 0.6; 6 rounds 97 and 80. More rounds are the cure.

(The name ``statistics`` would hide the standard library's module from every script beside it.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgediffusion.timing import summarize

Samples = Sequence[float | None]

LEAST_ROUNDS: Final = 6
"""With fewer, not even the smallest and the largest sample enclose the median 19 times of 20."""

_RESAMPLES: Final = 2000
_SEED: Final = 0


@dataclass(frozen=True)
class Estimate:
    """A median and the interval that holds it with 95 % confidence, from ``count`` rounds.

    With fewer than LEAST_ROUNDS rounds the interval is (0, inf): nothing is known.
    """

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        interval = "too few rounds" if self.high == np.inf else f"{self.low:.3g} to {self.high:.3g}"
        return f"{self.median:.3g} ({interval})"


class Verdict(StrEnum):
    """What a change of a ratio allows to say about a limit."""

    FASTER = "faster"
    OK = "ok"
    REGRESSION = "regression"
    NOISY = "too noisy to conclude"


def ratios(samples: Samples, base: Samples) -> list[float]:
    """Divide round by round; a round that lacks one of the two is left out.

    Raises ValueError where the series differ in length or hold something else than positive,
    finite numbers.
    """
    if len(samples) != len(base):
        raise ValueError(
            f"got {len(samples)} and {len(base)} rounds, expected series of the same rounds"
        )
    for value in (*samples, *base):
        if value is not None and not 0 < value < np.inf:
            raise ValueError(f"got a sample of {value}, expected a positive, finite number")
    both = zip(samples, base, strict=True)
    return [a / b for a, b in both if a is not None and b is not None]


def estimate(samples: Sequence[float]) -> Estimate:
    """Estimate the median of samples in the order of their rounds; raises ValueError for none."""
    median = summarize(samples).median
    low, high = _interval(_medians(samples, _SEED), len(samples))
    return Estimate(median, low, high, len(samples))


def change(old: Sequence[float], new: Sequence[float]) -> Estimate:
    """Estimate median(new) / median(old) of two runs; raises ValueError where one is empty."""
    ratio = summarize(new).median / summarize(old).median
    resampled = _medians(new, _SEED) / _medians(old, _SEED + 1)
    count = min(len(old), len(new))
    return Estimate(ratio, *_interval(resampled, count), count)


def judge(ratio: Estimate, limit: float) -> Verdict:
    """Judge new / old against ``1 + limit``: proven above, proven not above, or neither.

    A regression is one whose whole interval lies above the limit. ``FASTER`` is below 1 for sure.
    """
    if ratio.low > 1 + limit:
        return Verdict.REGRESSION
    if ratio.high > 1 + limit:
        return Verdict.NOISY
    return Verdict.FASTER if ratio.high < 1 else Verdict.OK


def _medians(samples: Sequence[float], seed: int) -> NDArray[Any]:
    """Medians of what other runs might have measured."""
    values = np.asarray(samples, float)
    shape = _RESAMPLES, _independent_rounds(values)
    drawn = np.random.default_rng(seed).integers(len(values), size=shape)
    medians: NDArray[Any] = np.median(values[drawn], axis=1)
    return medians


def _independent_rounds(values: NDArray[Any]) -> int:
    """The number of independent rounds that know as much: n (1 - r) / (1 + r) for correlation r."""
    distances = np.log(values) - np.median(np.log(values))
    spread = float(distances @ distances)
    if spread == 0:
        return len(values)
    # Short series look less correlated than they are, by about 1 / n.
    found = float(distances[1:] @ distances[:-1]) / spread + 1 / len(values)
    correlation = min(max(found, 0.0), 0.9)
    return max(2, round(len(values) * (1 - correlation) / (1 + correlation)))


def _interval(resampled: NDArray[Any], count: int) -> tuple[float, float]:
    if count < LEAST_ROUNDS:
        return 0.0, float("inf")
    low, high = np.quantile(resampled, (0.025, 0.975))
    return float(low), float(high)
