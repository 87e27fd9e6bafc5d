"""What samplers are made of: steps between levels, written once.

Arrays are float32 and never changed after they were yielded; all coefficients are Python floats,
so they stay float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
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


def monic(roots: Iterable[float]) -> list[float]:
    """Coefficients of the polynomial with these roots, the constant first, the last one 1.

    Plain floats: for three roots NumPy takes longer to call than to compute.
    """
    coefficients = [1.0]
    for root in roots:
        shifted = [0.0, *coefficients]
        coefficients = [s - root * c for s, c in zip(shifted, [*coefficients, 0.0], strict=True)]
    return coefficients


def lagrange(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Integrate the Lagrange polynomial of each node, given the integrals of its powers."""
    weights = []
    for node in nodes:
        others = [other for other in nodes if other != node]
        whole = math.prod(node - other for other in others)
        terms = zip(monic(others), moments, strict=True)
        weights.append(sum(c * moment for c, moment in terms) / whole)
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
