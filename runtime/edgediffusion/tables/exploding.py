"""Tables of the variance-exploding state, as k-diffusion keeps it: Euler, Heun and their kin."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediffusion.brownian import sde_levels
from edgediffusion.levels import (
    Float64s,
    Level,
    Row,
    Rows,
    Visits,
    ancestral,
    call,
    exploding,
)
from edgediffusion.scheduler_classes import Options
from edgediffusion.spacing import sigma_to_timestep, single_sigma_to_timestep, spaced_timesteps
from edgediffusion.tables.sigmas import check_falling, sigma_table, visit


def _visited(
    options: Options, visits: Visits, precision: type[np.floating[Any]] = np.float32
) -> tuple[Float64s, Float64s, Float64s]:
    """Choose timesteps, and sigmas: one more, the last is where the run ends.

    Returns them and the table of sigma by timestep.
    """
    table = sigma_table(options)
    steps = visits.steps or 1
    spacing, offset = options["timestep_spacing"], options["steps_offset"]
    grid = spaced_timesteps(spacing, steps, len(table), offset=offset, precision=precision)
    spread = np.interp(grid, np.arange(len(table)), table)
    if options.get("interpolation_type") == "log_linear":
        spread = np.exp(np.linspace(math.log(table[-1]), math.log(table[0]), steps + 1))
    timesteps, sigmas = visit(options, visits, table, grid, spread, spread[[-1, 0]])
    if len(sigmas) == len(timesteps):
        final = table[0] if options.get("final_sigmas_type") == "sigma_min" else 0.0
        sigmas = np.append(sigmas, final)
    check_falling(sigmas[:-1], visits)
    continuous = options.get("timestep_type") == "continuous"
    if continuous and options["prediction_type"] == "v_prediction":
        timesteps = 0.25 * np.log(sigmas[: len(timesteps)])
    rounded = sigmas[: len(timesteps) + 1].astype(np.float32).astype(np.float64)
    return timesteps, rounded, table


def _scale(options: Options, sigmas: Float64s) -> float:
    """What unit noise is multiplied by to become the first state."""
    top = float(sigmas.max())
    return math.hypot(top, 1) if options["timestep_spacing"] == "leading" else top


def _row(timestep: float, level: Level, end: Level, **more: Any) -> Row:
    """Make a row whose model wants a variance of one."""
    scale = 1 / math.hypot(level.sigma, 1)
    return call(float(np.float32(timestep)), level, end, input_scale=scale, **more)


def euler_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out euler and lms: straight from one sigma to the next."""
    timesteps, sigmas, _ = _visited(options, visits)
    steps = zip(timesteps, pairwise(exploding(sigmas)), strict=True)
    return tuple(_row(t, level, end) for t, (level, end) in steps), _scale(options, sigmas)


def euler_ancestral_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out euler_ancestral: below the next sigma, then fresh noise up to it."""
    timesteps, sigmas, _ = _visited(options, visits)
    rows = []
    for t, (level, end) in zip(timesteps, pairwise(exploding(sigmas)), strict=True):
        down, fresh = ancestral(level.sigma, end.sigma)
        rows.append(_row(t, level, end, down=down, fresh=fresh))
    return tuple(rows), _scale(options, sigmas)


def heun_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out heun: a call at the start of each step and one at its end, save the last."""
    timesteps, sigmas, _ = _visited(options, visits)
    return heun_calls(timesteps, exploding(sigmas), _row), _scale(options, sigmas)


def heun_calls(timesteps: NDArray[np.floating[Any]], levels: list[Level], row: Any = call) -> Rows:
    """Two calls a step, at its start and at its end; the last step makes do with one."""
    rows = []
    for i, (level, end) in enumerate(pairwise(levels)):
        rows.append(row(float(timesteps[i]), level, end))
        if i + 1 < len(timesteps):
            rows.append(row(float(timesteps[i + 1]), end, end, start=level))
    return tuple(rows)


def _between(sigma: float, end: float) -> float:
    """The sigma half way in the logarithm, in float32 as diffusers has it; 0 before 0."""
    if end == 0:
        return 0.0
    first, last = np.log(np.float32(sigma)), np.log(np.float32(end))
    return float(np.exp(first - (first - last) * np.float32(0.5)))


def dpm_2_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out dpm_2: a call at the start of each step and one half way in log sigma."""
    return _midway(options, visits, fresh_noise=False)


def dpm_2_ancestral_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out dpm_2_ancestral: as dpm_2, to below the next sigma, then fresh noise."""
    return _midway(options, visits, fresh_noise=True)


def _midway(options: Options, visits: Visits, *, fresh_noise: bool) -> tuple[Rows, float]:
    timesteps, sigmas, table = _visited(options, visits)
    if options["use_karras_sigmas"] and visits.steps is not None:
        timesteps = np.round(timesteps)
    rows = []
    for t, (level, end) in zip(timesteps, pairwise(exploding(sigmas)), strict=True):
        down, fresh = ancestral(level.sigma, end.sigma) if fresh_noise else (end.sigma, 0.0)
        middle = Level(1.0, _between(level.sigma, down))
        rows.append(_row(t, level, middle))
        if middle.sigma > 0:
            at = single_sigma_to_timestep(middle.sigma, table)
            rows.append(_row(at, middle, end, start=level, down=down, fresh=fresh))
    return tuple(rows), _scale(options, sigmas)


def dpmpp_sde_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out dpmpp_sde: half way and whole way, each to below its sigma, then fresh noise."""
    timesteps, sigmas, table = _visited(options, visits, np.float64)
    rows = []
    for t, (level, end) in zip(timesteps, pairwise(exploding(sigmas)), strict=True):
        if end.sigma == 0:
            rows.append(_row(t, level, end))
            continue
        first, half, last = sde_levels(level.sigma, end.sigma)
        down, fresh = ancestral(first, half)
        middle = Level(1.0, half)
        rows.append(_row(t, level, middle, down=down, fresh=fresh, span=(first, half)))
        at = float(sigma_to_timestep(np.array([half]), table)[0])
        down, fresh = ancestral(first, last)
        span = (first, last)
        rows.append(_row(at, middle, end, start=level, down=down, fresh=fresh, span=span))
    return tuple(rows), _scale(options, sigmas)
