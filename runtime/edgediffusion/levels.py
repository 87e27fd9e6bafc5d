"""Noise levels: the rows of a run's table, one for each call of the model.

A state is ``x = alpha * x0 + sigma * eps``. Variance-preserving tables have
alpha**2 + sigma**2 = 1, variance-exploding ones alpha = 1, flow ones alpha + sigma = 1, each as
diffusers' scheduler of that name keeps its latents. All numbers are Python floats: with NumPy 2 a
float64 scalar would turn float32 latents into float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float64s = NDArray[np.float64]


class Level(NamedTuple):
    """A noise level: the state is ``alpha * x0 + sigma * eps``."""

    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """Half the logarithm of the signal-to-noise ratio; infinite without noise or signal."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha else -math.inf


@dataclass(frozen=True, slots=True)
class Row:
    """One call of the model and the step taken from it.

    timestep : what the model is told; may be fractional.
    level : noise of the state at the call.
    end : noise of the state after the step.
    start : where the step sets out from: ``level``, save where a call looks ahead of its step.
    down : sigma that the step goes down to; less than ``end.sigma`` where fresh noise follows.
    fresh : how much fresh noise is added after it.
    span : where the noise is the increment of a path: the two sigmas between which; else None.
    input_scale : what the state is multiplied by to become the model's input.
    order : highest order that a multistep sampler may use for this step.
    """

    timestep: float
    level: Level
    end: Level
    start: Level
    down: float
    fresh: float = 0.0
    span: tuple[float, float] | None = None
    input_scale: float = 1.0
    order: int = 1

    @property
    def alpha(self) -> float:
        """Signal of the state at the call."""
        return self.level.alpha

    @property
    def sigma(self) -> float:
        """Noise of the state at the call."""
        return self.level.sigma

    @property
    def target(self) -> Level:
        """The level that the step goes down to, before fresh noise."""
        return Level(self.end.alpha, self.down)


Rows = tuple[Row, ...]


def call(
    timestep: float,
    level: Level,
    end: Level,
    *,
    start: Level | None = None,
    down: float | None = None,
    fresh: float | None = None,
    span: tuple[float, float] | None = None,
    input_scale: float = 1.0,
) -> Row:
    """Make a row; by default it sets out from its own level and needs no fresh noise.

    With ``down`` alone, so much fresh noise follows that the state has all of ``end``'s again.
    """
    down = end.sigma if down is None else down
    if fresh is None:
        fresh = math.sqrt(max(0.0, end.sigma**2 - down**2))
    return Row(
        timestep=timestep,
        level=level,
        end=end,
        start=start or level,
        down=down,
        fresh=fresh,
        span=span,
        input_scale=input_scale,
    )


def ancestral(sigma: float, end: float) -> tuple[float, float]:
    """Sigma to go down to, and fresh noise to add after it: k-diffusion's ``get_ancestral_step``.

    In float32, as there: a difference of squares that are nearly equal, it has few right digits,
    and the same ones make the same picture.
    """
    start, stop = np.float32(sigma), np.float32(end)
    up = np.sqrt(stop * stop * (start * start - stop * stop) / (start * start))
    up = min(stop, up)
    return float(np.sqrt(stop * stop - up * up)), float(up)


def exploding(sigmas: Iterable[float]) -> list[Level]:
    """Levels of the variance-exploding state."""
    return [Level(1.0, float(sigma)) for sigma in sigmas]


def preserving(sigmas: Iterable[float]) -> list[Level]:
    """Levels of the variance-preserving state, from sigmas of the exploding one."""
    alphas = ((1 / math.hypot(float(s), 1), float(s)) for s in sigmas)
    return [Level(alpha, alpha * sigma) for alpha, sigma in alphas]


def flowing(sigmas: Iterable[float]) -> list[Level]:
    """Levels of the straight flow between noise and picture."""
    return [Level(1.0 - float(sigma), float(sigma)) for sigma in sigmas]


@dataclass(frozen=True)
class Visits:
    """Which levels to visit: exactly one of the first three is set. Lists are falling and finite.

    skip : steps at the noisy end to leave out.
    """

    steps: int | None
    timesteps: Float64s | None
    sigmas: Float64s | None
    skip: int = 0
