"""Which timesteps and noise levels a run visits.

Sigma here is the noise of the variance-exploding state, ``sqrt((1 - a) / a)`` for an alpha
product ``a``. Tables over the training steps rise with the timestep; what is returned falls, as
sampling does. Source for every rounding: diffusers 0.42.1, ``set_timesteps``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Float64s = NDArray[np.float64]

RHO: Final = 7.0  # Karras et al. 2022, section 3


def spaced_timesteps(
    spacing: Literal["leading", "trailing", "linspace"] | str,
    steps: int,
    train_steps: int,
    *,
    offset: int = 0,
    last: int | None = None,
    spare: int = 0,
    precision: type[np.floating[Any]] | None = None,
) -> Float64s:
    """Space timesteps over the training steps: Lin et al. 2023 (arXiv:2305.08891), table 2.

    Parameters
    ----------
    spacing : str
        ``leading`` starts below the noisiest timestep, ``trailing`` ends above the cleanest,
        ``linspace`` visits both.
    steps, train_steps : int
        How many timesteps to visit, and of how many.
    offset : int
        Added by ``leading`` alone.
    last : int, optional
        Use only the timesteps below this one.
    spare : int
        Points beyond ``steps`` that are laid out, then cut off at the clean end.
    precision : type, optional
        What ``linspace`` is rounded to; None for whole numbers.

    Returns
    -------
    ndarray of shape (steps,), float64
        Falling. ``trailing`` with ``last`` may hold fewer.
    """
    top = train_steps if last is None else last
    count = steps + spare
    if spacing == "trailing":
        # Rounding can give np.arange one element too many, close to 0 (61 of 1000 steps);
        # diffusers then goes on to timestep -1, the noisiest of its table. We stop.
        ends = np.round(np.arange(top, 0, -train_steps / steps))
        return np.asarray(ends[ends >= 1] - 1, dtype=np.float64)
    if spacing == "leading":
        timesteps = np.arange(count) * float(top // count) + offset
    else:
        timesteps = np.linspace(0, top - 1, count)
        timesteps = np.round(timesteps) if precision is None else timesteps.astype(precision)
    return np.asarray(timesteps[::-1][:steps], dtype=np.float64)


def karras_sigmas(low: float, high: float, steps: int, rho: float = RHO) -> Float64s:
    """Space sigmas evenly in their rho-th root, falling: Karras et al. 2022, equation 5."""
    ramp = np.linspace(0, 1, steps)
    first, last = high ** (1 / rho), low ** (1 / rho)
    return np.asarray((first + ramp * (last - first)) ** rho, dtype=np.float64)


def exponential_sigmas(low: float, high: float, steps: int) -> Float64s:
    """Space sigmas evenly in their logarithm, falling."""
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


def beta_sigmas(low: float, high: float, steps: int) -> Float64s:
    """Space sigmas by the quantiles of a beta distribution, falling: Lee et al. 2024."""
    return low + beta_quantile(1 - np.linspace(0, 1, steps)) * (high - low)


def lu_sigmas(low: float, high: float, steps: int) -> Float64s:
    """Space sigmas as Lu et al. 2022 space lambda, with rho 1; diffusers' logs are float32."""
    first, last = np.log(np.array([high, low], dtype=np.float32)).astype(np.float64)
    return np.exp(np.linspace(first, last, steps))


SPACED_SIGMAS: Final[Mapping[str, Callable[[float, float, int], Float64s]]] = {
    "use_karras_sigmas": karras_sigmas,
    "use_exponential_sigmas": exponential_sigmas,
    "use_beta_sigmas": beta_sigmas,
    "use_lu_lambdas": lu_sigmas,
}
"""Spacings between a least and a greatest sigma, by diffusers' names of their options."""

BETA_SHAPE: Final = 0.6  # both parameters of the distribution in Lee et al. 2024


def beta_quantile(shares: Float64s, shape: float = BETA_SHAPE) -> Float64s:
    """Invert the symmetric beta distribution function, without SciPy.

    The function grows like a power of its argument near 0, so it is inverted in
    ``x**shape``, where it is smooth, by Newton's method. Symmetry gives the upper half.

    Parameters
    ----------
    shares : ndarray of float64
        Probabilities, 0 to 1.
    shape : float
        Both parameters of the distribution, below 1.

    Returns
    -------
    ndarray of float64
        To about 1e-14, as ``scipy.stats.beta.ppf(shares, shape, shape)``.
    """
    lower = np.minimum(shares, 1 - shares)
    # The half integral by its series in x: sum of (1 - shape)_k / k! / (shape + k) * x**k.
    index = np.arange(1, 80)
    factors = np.concatenate([[1.0], np.cumprod((index - shape) / index)])
    series = factors / (shape + np.arange(80))
    total = math.gamma(shape) ** 2 / math.gamma(2 * shape)

    def power(x: Float64s) -> Float64s:  # the distribution function without its factor x**shape
        return np.polyval(series[::-1], x) / total

    root = lower * total * shape  # the first guess of x**shape
    for _ in range(20):
        x = root ** (1 / shape)
        slope = power(x) + x * np.polyval((series[1:] * index)[::-1], x) / total / shape
        step = (root * power(x) - lower) / slope
        root = np.clip(root - step, 0, 0.5**shape)
    x = root ** (1 / shape)
    return np.where(shares > 0.5, 1 - x, x)


ALIGNED: Final[Mapping[str, tuple[float, ...]]] = {
    "ays": (999, 850, 736, 645, 545, 455, 343, 233, 124, 24),
    "ays_xl": (999, 845, 730, 587, 443, 310, 193, 116, 53, 13),
}
"""Align Your Steps (Sabour et al. 2024, arXiv:2404.14507): timesteps for ten steps, optimised for
Stable Diffusion 1.5 and for SDXL."""


def aligned_timesteps(name: str, steps: int, table: Float64s) -> Float64s:
    """Lay out Align Your Steps' timesteps, for other than ten steps as its authors do.

    They interpolate the logarithm of sigma; ``table`` holds sigma by timestep.
    """
    optimised = np.asarray(ALIGNED[name], dtype=np.float64)
    if steps == len(optimised):
        return optimised
    sigmas = np.interp(optimised, np.arange(len(table)), table)
    places = np.linspace(0, len(optimised) - 1, steps)
    logs = np.interp(places, np.arange(len(optimised)), np.log(sigmas))
    return np.round(sigma_to_timestep(np.exp(logs), table))


def sigma_to_timestep(sigmas: Float64s, table: Float64s) -> Float64s:
    """Find the fractional timestep of each sigma, linear in log sigma, clipped to the table."""
    log_table = np.log(table.astype(np.float32)).astype(np.float64)
    log_sigmas = np.log(np.maximum(sigmas, 1e-10))
    return np.interp(log_sigmas, log_table, np.arange(len(table), dtype=np.float64))


def single_sigma_to_timestep(sigma: float, table: Float64s) -> float:
    """Find the timestep of one sigma in float32, as diffusers does between two visited ones."""
    logs = np.log(table.astype(np.float32))
    log_sigma = np.log(np.maximum(np.float32(sigma), np.float32(1e-10)))
    low = min(max(int(np.searchsorted(logs, log_sigma, side="right")) - 1, 0), len(logs) - 2)
    share = np.clip((logs[low] - log_sigma) / (logs[low] - logs[low + 1]), 0, 1)
    return float((np.float32(1) - share) * np.float32(low) + share * np.float32(low + 1))
