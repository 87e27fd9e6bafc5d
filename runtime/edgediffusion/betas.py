"""Training noise: from a scheduler configuration to the cumulative product of alphas.

A checkpoint was trained on float32 tables, and diffusers samples from float32 tables. The betas
and their cumulative product are therefore rounded where PyTorch rounds them (its ``cumprod``
accumulates in float64 and stores float32); everything derived from them is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgediffusion.errors import ScheduleError, choices

Float32s = NDArray[np.float32]
Float64s = NDArray[np.float64]

# What diffusers' sigma-space schedulers put in place of a terminal alpha product of exactly zero,
# where sigma would be infinite: the smallest positive float16. Sigma becomes 4096.
SMALLEST_ALPHA_PRODUCT: Final = 2.0**-24


def _linspace(start: float, stop: float, count: int) -> Float32s:
    """``torch.linspace`` in float32: each half counts from its own end, each step one FMA."""
    if count == 1:
        return np.array([start], dtype=np.float32)
    first, last = np.float32(start), np.float32(stop)
    step = float((last - first) / np.float32(count - 1))
    index = np.arange(count, dtype=np.float64)
    rising = float(first) + step * index
    falling = float(last) - step * (count - 1 - index)
    return np.where(index < count // 2, rising, falling).astype(np.float32)


def _scaled_linear(start: float, stop: float, count: int) -> Float32s:
    """Linear in the square root of beta: latent diffusion (Rombach et al. 2022)."""
    return _linspace(start**0.5, stop**0.5, count) ** 2


def _from_alpha_bar(alpha_bar: Callable[[float], float], count: int) -> Float32s:
    """Betas that make a continuous alpha product, capped at 0.999: Nichol and Dhariwal 2021."""
    products = [alpha_bar(i / count) for i in range(count + 1)]
    betas = (min(1 - after / before, 0.999) for before, after in pairwise(products))
    return np.fromiter(betas, dtype=np.float32, count=count)


def _cosine(start: float, stop: float, count: int) -> Float32s:
    """Squared cosine of time: Nichol and Dhariwal 2021, equation 17."""
    return _from_alpha_bar(lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2, count)


def _exponential(start: float, stop: float, count: int) -> Float32s:
    """Alpha product falling exponentially in time."""
    return _from_alpha_bar(lambda t: math.exp(-12.0 * t), count)


def _laplace(start: float, stop: float, count: int) -> Float32s:
    """Laplace distribution of the log signal-to-noise ratio: Hang et al. 2024."""

    def alpha_bar(t: float) -> float:
        side = -math.copysign(0.5, 0.5 - t)
        snr = math.exp(side * math.log(1 - 2 * abs(0.5 - t) + 1e-6))
        return math.sqrt(snr / (1 + snr))

    return _from_alpha_bar(alpha_bar, count)


def _sigmoid(start: float, stop: float, count: int) -> Float32s:
    """Betas along a logistic curve: GeoDiff (Xu et al. 2022)."""
    rising = 1 / (1 + np.exp(-_linspace(-6, 6, count)))
    return np.asarray(rising * np.float32(stop - start) + np.float32(start), dtype=np.float32)


BETAS: Final[Mapping[str, Callable[[float, float, int], Float32s]]] = {
    "linear": _linspace,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _cosine,
    "exp": _exponential,
    "laplace": _laplace,
    "sigmoid": _sigmoid,
}


def _cumprod(alphas: Float32s) -> Float32s:
    """``torch.cumprod`` of float32 on the CPU."""
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32)


def _zero_terminal_snr(betas: Float32s) -> Float32s:
    """Rescale betas so that the last step is pure noise: Lin et al. 2023, Algorithm 1."""
    roots = np.sqrt(_cumprod(np.float32(1) - betas))
    first, last = roots[0], roots[-1]
    products = ((roots - last) * (first / (first - last))) ** 2
    return np.float32(1) - np.concatenate([products[:1], products[1:] / products[:-1]])


def _trained(betas: Sequence[float], count: int) -> Float32s:
    """Check betas that the configuration itself lists."""
    table = np.asarray(betas, dtype=np.float32)
    if table.ndim != 1 or not table.size or not np.all((table >= 0) & (table < 1)):
        raise ScheduleError(
            "trained_betas: expected a list of numbers from 0 to 1, one per training step; "
            "repair scheduler_config.json"
        )
    if len(table) != count:
        raise ScheduleError(
            f"trained_betas: got {len(table)} for {count} training steps, expected as many; "
            "repair num_train_timesteps in scheduler_config.json"
        )
    return table


def alphas_cumprod(options: Mapping[str, Any]) -> Float64s:
    """Tabulate the cumulative product of alphas over the training steps.

    Parameters
    ----------
    options : mapping
        diffusers' names: ``num_train_timesteps``, ``beta_start``, ``beta_end``,
        ``beta_schedule``, ``trained_betas``, ``rescale_betas_zero_snr``.

    Returns
    -------
    ndarray of shape (num_train_timesteps,), float64
        Float32 values, equal to diffusers' own; exactly 0 at the end with zero terminal SNR.

    Raises
    ------
    ScheduleError
        For an unknown ``beta_schedule`` or malformed ``trained_betas``.

    Source: diffusers 0.42.1, the constructors of ``diffusers.schedulers``.
    """
    name = options["beta_schedule"]
    count = options["num_train_timesteps"]
    if options["trained_betas"] is not None:
        betas = _trained(options["trained_betas"], count)
    elif name in BETAS:
        betas = BETAS[name](options["beta_start"], options["beta_end"], count)
    else:
        raise ScheduleError(f"beta_schedule: got {name!r}; {choices(str(name), BETAS)}")
    if options.get("rescale_betas_zero_snr"):
        betas = _zero_terminal_snr(betas)
    return _cumprod(np.float32(1) - betas).astype(np.float64)
