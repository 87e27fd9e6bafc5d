"""What samplers are made of: steps between levels, written once.

Arrays are float32 and never changed after they were yielded; all coefficients are Python floats,
so they stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgediffusion.levels import Level, Row
from edgediffusion.noise import NoiseSource
from edgediffusion.prediction import Denoise
from edgediffusion.schedule import Schedule

Array = NDArray[np.float32]
States = Iterator[tuple[Array, Array]]
Sampler = Callable[[Denoise, Array, Schedule, NoiseSource], States]
Term = tuple[float, Array]


def combine(first: Term, *rest: Term) -> Array:
    """Sum arrays, each times a number, into a new array."""
    weight, array = first
    total = weight * array
    for weight, array in rest:
        if weight:
            total += weight * array
    return total


def hold_x0(start: Level, end: Level) -> tuple[float, float]:
    """Weights of the state at `start` and of x0 in a step to `end` with x0 held.

    The step follows the probability flow, exactly for that x0: DDIM's step, Euler's step in sigma
    and DPM-Solver++'s first order are all this one.
    """
    keep = end.sigma / start.sigma
    return keep, end.alpha - keep * start.alpha


def hold_eps(start: Level, end: Level) -> tuple[float, float]:
    """Weights of the state at `start` and of the noise in a step to `end` with the noise held.

    For the noise of one x0 the same step as `hold_x0`; the two differ where several are mixed.
    """
    keep = end.alpha / start.alpha
    return keep, end.sigma - keep * start.sigma


def freshen(x: Array, row: Row, noise: NoiseSource) -> Array:
    """Add a row's fresh noise, in place."""
    if row.fresh:
        x += row.fresh * noise(x.shape)
    return x


def lagrange(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Integrate the Lagrange polynomial of each node, given the integrals of its powers.

    They solve the Vandermonde system ``sum(weight * node**k) == moments[k]``: Björck and Pereyra
    1970. Plain floats: for four nodes NumPy takes longer to call than to compute.
    """
    weights, last = list(moments), len(nodes) - 1
    for k in range(last):
        for i in range(last, k, -1):
            weights[i] -= nodes[k] * weights[i - 1]
    for k in range(last - 1, -1, -1):
        for i in range(k + 1, last + 1):
            weights[i] /= nodes[i] - nodes[i - k - 1]
        for i in range(k, last):
            weights[i] -= weights[i + 1]
    return weights


# Adams-Bashforth weights, newest slope first, by the number of slopes known.
_ADAMS_BASHFORTH: Final = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def adams_bashforth(slopes: list[Array], scale: float = 1.0) -> list[Term]:
    """Extrapolate from the slopes known so far, newest first, at even steps; times a number."""
    weights = _ADAMS_BASHFORTH[len(slopes) - 1]
    return [(scale * weight, slope) for weight, slope in zip(weights, slopes, strict=True)]
