"""Which sigmas a run visits: out of the request, the spacing options and the training table."""

from __future__ import annotations

import numpy as np

from edgediffusion.betas import SMALLEST_ALPHA_PRODUCT, alphas_cumprod
from edgediffusion.errors import RequestError
from edgediffusion.levels import Float64s, Visits
from edgediffusion.scheduler_classes import Options
from edgediffusion.spacing import SPACED_SIGMAS, sigma_to_timestep


def sigma_table(options: Options) -> Float64s:
    """Tabulate sigma over the training steps; with zero terminal SNR it ends at 4096.

    Rounded to float32 as diffusers rounds it: Brownian noise tells one bit of sigma from the next.
    """
    table = alphas_cumprod(options).astype(np.float32)
    if options.get("rescale_betas_zero_snr"):
        table[-1] = SMALLEST_ALPHA_PRODUCT
    return np.asarray(np.sqrt((1 - table) / table), dtype=np.float64)


def visit(
    options: Options,
    visits: Visits,
    table: Float64s,
    grid: Float64s,
    spread: Float64s,
    ends: Float64s,
) -> tuple[Float64s, Float64s]:
    """Choose timesteps and sigmas out of what the request and the options say.

    Parameters
    ----------
    options, visits
        The scheduler's options and the request.
    table : ndarray of float64
        Sigma by timestep.
    grid : ndarray of float64
        The timesteps of an evenly spaced run.
    spread : ndarray of float64
        The sigmas of an evenly spaced run, falling.
    ends : ndarray of float64
        The least and the greatest sigma of other spacings.

    Returns
    -------
    tuple of ndarray
        Timesteps, and as many sigmas; one more where the request or the spacing says where to end.
    """
    if visits.sigmas is not None:
        return sigma_to_timestep(visits.sigmas[:-1], table), visits.sigmas
    if visits.timesteps is not None:
        return visits.timesteps, np.interp(visits.timesteps, np.arange(len(table)), table)
    spaced = spaced_sigmas(options, ends, len(grid))
    if spaced is None:
        return grid, spread
    return sigma_to_timestep(spaced, table), spaced


def spaced_sigmas(options: Options, ends: Float64s, steps: int) -> Float64s | None:
    """Space sigmas between the two ends, or those in the options; None for an even spacing."""
    given = options.get("sigma_min"), options.get("sigma_max")
    low, high = (
        float(end) if value is None else float(value)
        for value, end in zip(given, ends, strict=True)
    )
    for flag, space in SPACED_SIGMAS.items():
        if options.get(flag):
            return space(low, high, steps)
    return None


def check_falling(sigmas: Float64s, visits: Visits) -> None:
    """Refuse two steps at the same noise level, and a step from no noise."""
    if np.any(np.diff(sigmas) >= 0) or sigmas[-1] <= 0:
        asked = f"{visits.steps} steps" if visits.steps else "the list in the request"
        raise RequestError(
            f"steps: {asked} would visit a noise level twice or step from no noise at all "
            "(this spacing has too few levels); use fewer steps"
        )
