"""Which timesteps and noise levels a run visits.

Sigma here is the noise of the variance-exploding state, ``sqrt((1 - a) / a)`` for an alpha
product ``a``. Tables over the training steps rise with the timestep; what is returned falls, as
sampling does. Source for every rounding: diffusers 0.42.1, ``set_timesteps``.
"""

from __future__ import annotations

from typing import Final, Literal

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
    whole: bool = True,
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
    whole : bool
        Whether ``linspace`` rounds.

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
        timesteps = np.round(timesteps) if whole else timesteps.astype(np.float32)
    return np.asarray(timesteps[::-1][:steps], dtype=np.float64)


def karras_sigmas(sigma_min: float, sigma_max: float, steps: int) -> Float64s:
    """Space sigmas evenly in their 7th root, falling: Karras et al. 2022, equation 5."""
    ramp = np.linspace(0, 1, steps)
    low, high = sigma_min ** (1 / RHO), sigma_max ** (1 / RHO)
    sigmas: Float64s = np.power(high + ramp * (low - high), RHO)
    return sigmas


def sigma_to_timestep(sigmas: Float64s, table: Float64s) -> Float64s:
    """Find the fractional timestep of each sigma, linear in log sigma, clipped to the table."""
    log_table = np.log(table.astype(np.float32)).astype(np.float64)
    log_sigmas = np.log(np.maximum(sigmas, 1e-10))
    return np.interp(log_sigmas, log_table, np.arange(len(table), dtype=np.float64))
