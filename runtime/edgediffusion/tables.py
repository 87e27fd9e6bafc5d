"""Tables of noise levels: one row for each call of the model, made before the loop.

A state is ``x = alpha * x0 + sigma * eps``. Variance-preserving tables have alpha**2 + sigma**2 = 1
(ddim, pndm, dpmpp_2m), variance-exploding ones alpha = 1 (euler, euler_ancestral), each as
diffusers' scheduler of that name keeps its latents. All numbers are Python floats: with NumPy 2 a
float64 scalar would turn float32 latents into float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgediffusion.betas import SMALLEST_ALPHA_PRODUCT, alphas_cumprod
from edgediffusion.errors import RequestError
from edgediffusion.options import Options
from edgediffusion.spacing import karras_sigmas, sigma_to_timestep, spaced_timesteps

Float64s = NDArray[np.float64]


class Level(NamedTuple):
    """A noise level: the state is ``alpha * x0 + sigma * eps``."""

    alpha: float
    sigma: float


@dataclass(frozen=True, slots=True)
class Row:
    """One call of the model and the step taken from it.

    timestep : what the model is told; may be fractional.
    level : noise of the state at the call.
    end : noise of the state after the step.
    start : where the step sets out from: ``level``, save in pndm's second call, which makes the
        first step again.
    input_scale : what the state is multiplied by to become the model's input.
    order : highest order that a multistep sampler may use for this step.
    """

    timestep: float
    level: Level
    end: Level
    start: Level
    input_scale: float = 1.0
    order: int = 2

    @property
    def alpha(self) -> float:
        """Signal of the state at the call."""
        return self.level.alpha

    @property
    def sigma(self) -> float:
        """Noise of the state at the call."""
        return self.level.sigma


@dataclass(frozen=True)
class Visits:
    """Which levels to visit: exactly one of the three is set. Lists are falling and finite."""

    steps: int | None
    timesteps: Float64s | None
    sigmas: Float64s | None


Rows = tuple[Row, ...]


def _alpha_levels(options: Options) -> Callable[[float], Level]:
    """Look levels up by timestep; before timestep 0 lies the final level."""
    table = alphas_cumprod(options)
    final = 1.0 if options["set_alpha_to_one"] else float(table[0])

    def level(timestep: float) -> Level:
        product = float(table[int(timestep)]) if timestep >= 0 else final
        return Level(math.sqrt(product), math.sqrt(1 - product))

    return level


def _whole_timesteps(options: Options, visits: Visits) -> Float64s:
    """Lay out timesteps for the samplers that look levels up by whole timesteps."""
    train_steps = options["num_train_timesteps"]
    if visits.timesteps is not None:
        return np.round(visits.timesteps)
    if visits.steps is None:
        raise RequestError(
            "sigmas: this sampler visits whole timesteps; pass timesteps, or use the sampler "
            "euler, euler_ancestral or dpmpp_2m"
        )
    timesteps = spaced_timesteps(
        options["timestep_spacing"], visits.steps, train_steps, offset=options["steps_offset"]
    )
    if timesteps[0] >= train_steps:
        raise RequestError(
            f"steps: {visits.steps} steps with steps_offset {options['steps_offset']} begin at "
            f"timestep {timesteps[0]:g}, but the model knows 0 to {train_steps - 1}; "
            "use fewer steps"
        )
    return timesteps


def _ddim_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out ddim: a step goes down by a fixed stride, wherever the next timestep is."""
    level = _alpha_levels(options)
    timesteps = [float(t) for t in _whole_timesteps(options, visits)]
    if visits.steps is None:
        ends = [*timesteps[1:], -1.0]
    else:
        # diffusers' stride is the rounded one; where the spacing is not, the two differ a little.
        ends = [t - options["num_train_timesteps"] // visits.steps for t in timesteps]
    rows = (
        Row(timestep=t, level=level(t), end=level(end), start=level(t))
        for t, end in zip(timesteps, ends, strict=True)
    )
    return tuple(rows), 1.0


def _pndm_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out pndm: as ddim, with the second timestep visited twice.

    Its first call re-does the step that led there, with the mean of both slopes.
    """
    if visits.steps is None:
        raise RequestError("timesteps: sampler 'pndm' needs an even spacing; pass steps instead")
    level = _alpha_levels(options)
    timesteps = [float(t) for t in _whole_timesteps(options, visits)]
    stride = options["num_train_timesteps"] // visits.steps
    rows = [
        Row(timestep=t, level=level(t), end=level(t - stride), start=level(t)) for t in timesteps
    ]
    if len(timesteps) > 1:
        t = timesteps[1]
        again = Row(timestep=t, level=level(t), end=level(t), start=level(t + stride))
        rows.insert(1, again)
    return tuple(rows), 1.0


def _sigma_table(options: Options) -> Float64s:
    """Tabulate sigma over the training steps; with zero terminal SNR it ends at 4096."""
    table = alphas_cumprod(options)
    if options["rescale_betas_zero_snr"]:
        table[-1] = SMALLEST_ALPHA_PRODUCT
    return np.sqrt((1 - table) / table)


def _visited(
    options: Options, visits: Visits, table: Float64s, grid: Float64s, ends: Float64s
) -> tuple[Float64s, Float64s]:
    """Choose timesteps and sigmas (one more) out of what the request and the options say.

    grid : the timesteps of an evenly spaced run; ends : sigmas between which karras spaces.
    """
    if visits.sigmas is not None:
        return sigma_to_timestep(visits.sigmas[:-1], table), visits.sigmas
    timesteps = grid if visits.timesteps is None else visits.timesteps
    sigmas = np.interp(timesteps, np.arange(len(table)), table)
    if visits.steps is not None and options.get("use_karras_sigmas"):
        given = options["sigma_min"], options["sigma_max"]
        sigma_min, sigma_max = (
            float(end) if value is None else float(value)
            for value, end in zip(given, ends, strict=True)
        )
        sigmas = karras_sigmas(sigma_min, sigma_max, visits.steps)
        timesteps = sigma_to_timestep(sigmas, table)
    final = table[0] if options.get("final_sigmas_type") == "sigma_min" else 0.0
    return timesteps, np.append(sigmas, final)


def _euler_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out the samplers of the variance-exploding state."""
    table = _sigma_table(options)
    spacing, offset = options["timestep_spacing"], options["steps_offset"]
    grid = spaced_timesteps(spacing, visits.steps or 1, len(table), offset=offset, whole=False)
    ends = np.interp([grid[-1], grid[0]], np.arange(len(table)), table)
    timesteps, sigmas = _visited(options, visits, table, grid, ends)
    _check_falling(sigmas[:-1], visits)
    levels = [Level(1.0, float(sigma)) for sigma in sigmas]
    rows = (
        Row(
            timestep=float(np.float32(timestep)),
            level=level,
            end=end,
            start=level,
            input_scale=1 / math.hypot(level.sigma, 1),
        )
        for timestep, (level, end) in zip(timesteps, pairwise(levels), strict=True)
    )
    top = float(sigmas.max())
    return tuple(rows), math.hypot(top, 1) if spacing == "leading" else top


def _dpm_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out the DPM-Solver family: spaced in sigma, stepped in the variance-preserving state."""
    table = _sigma_table(options)
    # The cosine schedule needs its noisiest timesteps cut off; lambda is -log(sigma).
    least = options["lambda_min_clipped"]
    cut = 0 if least is None else int(np.searchsorted(-np.log(table[::-1]), float(least)))
    grid = spaced_timesteps(
        options["timestep_spacing"],
        visits.steps or 1,
        len(table),
        offset=options["steps_offset"],
        last=len(table) - cut,
        spare=1,
    )
    timesteps, sigmas = _visited(options, visits, table, grid, table[[0, -1]])
    _check_falling(sigmas[:-1], visits)
    if options["beta_schedule"] != "squaredcos_cap_v2":
        timesteps = np.round(timesteps)
    alphas = 1 / np.sqrt(sigmas**2 + 1)
    levels = [Level(float(a), float(a * s)) for a, s in zip(alphas, sigmas, strict=True)]
    rows = [
        Row(timestep=float(int(timestep)), level=level, end=end, start=level)
        for timestep, (level, end) in zip(timesteps, pairwise(levels), strict=True)
    ]
    return _ordered(rows, options), 1.0


def _ordered(rows: list[Row], options: Options) -> Rows:
    """Set the order of a two-step solver: first order where a second step would be unstable."""
    few = len(rows) < 15 and options["lower_order_final"]
    euler_last = few or options["euler_at_final"] or options["final_sigmas_type"] == "zero"
    first_order = {0, len(rows) - 1} if euler_last or rows[-1].end.sigma == 0 else {0}
    return tuple(replace(row, order=1 if i in first_order else 2) for i, row in enumerate(rows))


def _check_falling(sigmas: Float64s, visits: Visits) -> None:
    """Refuse two steps at the same noise level, and a step from no noise."""
    if np.any(np.diff(sigmas) >= 0) or sigmas[-1] <= 0:
        asked = f"{visits.steps} steps" if visits.steps else "the list in the request"
        raise RequestError(
            f"steps: {asked} would visit a noise level twice or step from no noise at all "
            "(this spacing has too few levels); use fewer steps"
        )


# For each diffusers class, a run's table and the scale that turns unit noise into its first state.
TABLES: Final[Mapping[str, Callable[[Options, Visits], tuple[Rows, float]]]] = {
    "DDIMScheduler": _ddim_rows,
    "PNDMScheduler": _pndm_rows,
    "EulerDiscreteScheduler": _euler_rows,
    "EulerAncestralDiscreteScheduler": _euler_rows,
    "DPMSolverMultistepScheduler": _dpm_rows,
}
