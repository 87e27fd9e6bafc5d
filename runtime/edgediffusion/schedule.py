"""Schedules: a run's table of noise levels, from diffusers' scheduler configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from edgediffusion.errors import RequestError, ScheduleError, choices
from edgediffusion.levels import Float64s, Level, Rows, Visits
from edgediffusion.options import Reading, read_config
from edgediffusion.prediction import Conversion, Limit
from edgediffusion.scheduler_classes import Options
from edgediffusion.spacing import ALIGNED, SPACED_SIGMAS, aligned_timesteps
from edgediffusion.tables import TABLES
from edgediffusion.tables.sigmas import sigma_table

EVEN: Final = ("leading", "trailing", "linspace")
FLAGS: Final[Mapping[str, str]] = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
    "lu": "use_lu_lambdas",
}
SPACINGS: Final = (*EVEN, *FLAGS, *ALIGNED)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The table of a run.

    sampler : a name in ``edgediffusion.SAMPLERS``.
    scheduler : diffusers' class that it stands for.
    conversion : how the model's predictions become x0.
    rows : one for each call of the model.
    first : the noise that a picture to begin from is laid under.
    left_out : the rows before them that a strength leaves out; LMS counts them as if they were
        made. Empty for samplers that lay out a shorter run by themselves.
    init_noise_scale : what unit noise is multiplied by to become the first state.
    spacing : how the levels were laid out: a name in ``SPACINGS``, or timesteps, sigmas or flow.
    options : every option of the scheduler, by diffusers' names, read-only.
    dropped : options of the configuration that the sampler has no use for.
    sigma_range : the least sigma above 0 at which a step begins or ends, and the greatest; of the
        whole table, also where a strength leaves a part of it out.
    """

    sampler: str
    scheduler: str
    conversion: Conversion
    rows: Rows
    first: Level
    init_noise_scale: float
    spacing: str
    options: Options = field(repr=False, compare=False)
    dropped: tuple[str, ...] = ()
    sigma_range: tuple[float, float] = (0.0, 1.0)
    left_out: Rows = ()

    @property
    def prediction(self) -> str:
        """What the model predicts: a name in ``edgediffusion.prediction.PREDICTIONS``."""
        return self.conversion.prediction

    @property
    def stochastic(self) -> bool:
        """Whether the sampler draws fresh noise on the way (dpmpp_sde has a source of its own)."""
        drawn = any(row.fresh and row.span is None for row in self.rows)
        return drawn or self.scheduler == "SASolverScheduler"  # which draws where it adds none, too


def schedule_from_config(
    config: Mapping[str, Any],
    steps: int | None = None,
    sampler: str | None = None,
    spacing: str | None = None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    strength: float = 1.0,
    **options: Any,
) -> Schedule:
    """Make the table that diffusers' scheduler of this configuration would step through.

    Parameters
    ----------
    config : mapping
        diffusers' ``scheduler_config.json``, as it is.
    steps : int, optional
        Sampler steps, from 1 to the number of training steps.
    sampler : str, optional
        A name in ``edgediffusion.SAMPLERS``. None takes the sampler of the configuration's class;
        another one reads the configuration as ``OtherScheduler.from_config(config)`` does.
    spacing : str, optional
        One of ``SPACINGS``, in place of the configuration's: leading, trailing, linspace, karras,
        exponential, beta, lu, or Align Your Steps: ays (Stable Diffusion 1.5), ays_xl.
    timesteps : sequence of float, optional
        Instead of ``steps``: falling timesteps to visit (all samplers but pndm, ipndm and EDM's).
    sigmas : sequence of float, optional
        Instead of ``steps``: falling sigmas, one more than steps, the last usually 0
        (samplers that work in sigma). For flow models as diffusers takes them: before the shift,
        and the 0 at the end may go unsaid.
    strength : float
        Below 1: leave out the noisy end, for image to image; ``int(steps * strength)`` steps stay.
    **options
        Options of the scheduler, by diffusers' names, in place of the configuration's; and what its
        ``step`` takes: ``eta`` (ddim, tcd), ``mu`` for dynamic shifting.

    Returns
    -------
    Schedule
        All numbers are Python floats, so that float32 arrays stay float32.

    Raises
    ------
    RequestError
        For an unknown sampler, spacing or option, or steps, timesteps, sigmas or a strength that
        make no sense.
    ScheduleError
        For a configuration that is broken, or an option in it that the sampler lacks.

    Source: diffusers 0.42.1, the class of that name.
    """
    reading = read_config(config, sampler, options)
    if spacing is not None:
        reading = reading._replace(options=reading.options | _spacing_options(spacing, reading))
    visits = _checked(steps, timesteps, sigmas, reading.options["num_train_timesteps"])
    visits = _cut(_aligned(visits, spacing, reading.options), strength)
    layout = TABLES[reading.scheduler]
    rows, init_noise_scale = layout.rows(reading.options, visits)
    sigmas = [level.sigma for row in rows for level in (row.start, row.end) if level.sigma > 0]
    first = visits.skip * layout.calls
    left_out, rows = rows[:first], rows[first:]
    if rows[0].alpha == 0 and reading.options.get("prediction_type") == "epsilon":
        raise ScheduleError(
            "rescale_betas_zero_snr: the first step is pure noise, from which a model with "
            "prediction_type 'epsilon' says nothing about the picture "
            f"(sampler {reading.sampler!r}); use spacing='leading', or the sampler euler"
        )
    return Schedule(
        sampler=reading.sampler,
        scheduler=reading.scheduler,
        conversion=_conversion(reading),
        rows=rows,
        first=layout.first(reading.options, rows[0]),
        init_noise_scale=init_noise_scale,
        spacing=_spacing_name(reading.options, visits, spacing),
        options=MappingProxyType(reading.options),
        dropped=reading.dropped,
        sigma_range=(min(sigmas), max(sigmas)),
        left_out=left_out,
    )


def _conversion(reading: Reading) -> Conversion:
    """Read from the options what the model predicts, and what bounds x0 has."""
    options = reading.options
    learned = options.get("variance_type") in ("learned", "learned_range")
    prediction = options.get("prediction_type")
    if reading.scheduler == "IPNDMScheduler":
        prediction = "v_prediction"
    elif prediction is None:
        prediction = "inverted_flow" if options.get("invert_sigmas") else "flow_prediction"
    elif "sigma_data" in options and prediction == "epsilon":
        prediction = "edm"
    limit = None
    if options.get("thresholding") and options.get("predict_x0", True):
        share = float(options["dynamic_thresholding_ratio"])
        limit = Limit(float(options["sample_max_value"]), share)
    elif options.get("clip_sample"):
        limit = Limit(float(options["clip_sample_range"]))
    return Conversion(str(prediction), limit, learned, float(options.get("sigma_data", 1.0)))


def _spacing_options(spacing: str, reading: Reading) -> dict[str, Any]:
    """Translate the request's word for the spacing into the configuration's options."""
    if spacing not in SPACINGS:
        raise RequestError(f"schedule: got {spacing!r}; {choices(str(spacing), SPACINGS)}")
    options = reading.options
    off: dict[str, Any] = {flag: False for flag in SPACED_SIGMAS if flag in options}
    if spacing in ALIGNED:
        return off
    name = FLAGS.get(spacing, "timestep_spacing")
    if name not in options:
        others = [word for word in SPACINGS if FLAGS.get(word, "timestep_spacing") in options]
        raise RequestError(
            f"schedule: sampler {reading.sampler!r} has no {spacing} spacing; "
            + (f"use {', '.join(others)}" if others else "leave it out")
            + ", or another sampler, e.g. euler or dpmpp_2m"
        )
    return off | {name: True if spacing in FLAGS else spacing}


def _aligned(visits: Visits, spacing: str | None, options: Options) -> Visits:
    """Put Align Your Steps' timesteps in the place of a number of steps."""
    if spacing is None or spacing not in ALIGNED or visits.steps is None:
        return visits
    if "beta_schedule" not in options:
        raise RequestError(f"schedule: {spacing} is for models trained on betas; leave it out")
    timesteps = aligned_timesteps(spacing, visits.steps, sigma_table(options))
    if np.any(np.diff(timesteps) >= 0):
        raise RequestError(
            f"steps: {visits.steps} steps of {spacing} would visit a timestep twice; use fewer"
        )
    return Visits(None, timesteps, None)


def _cut(visits: Visits, strength: float) -> Visits:
    """Say how many steps a strength leaves out, as diffusers' image-to-image pipelines do."""
    if not isinstance(strength, int | float) or not 0 < strength <= 1:
        raise RequestError(f"strength: got {strength!r}, expected a number above 0, at most 1")
    listed = visits.timesteps if visits.sigmas is None else visits.sigmas[:-1]
    steps = visits.steps or (0 if listed is None else len(listed))
    kept = min(int(steps * strength), steps)
    if kept == 0:
        raise RequestError(
            f"strength: {strength:g} of {steps} steps leaves none; use at least {1 / steps:.3g}"
        )
    return replace(visits, skip=steps - kept)


def _spacing_name(options: Options, visits: Visits, spacing: str | None) -> str:
    if spacing in ALIGNED:
        return str(spacing)
    if visits.steps is None:
        return "sigmas" if visits.timesteps is None else "timesteps"
    named = (word for word, flag in FLAGS.items() if options.get(flag))
    default = options.get("timestep_spacing", "linspace" if "beta_schedule" in options else "flow")
    return next(named, str(default))


def _checked(
    steps: int | None,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
    train_steps: int,
) -> Visits:
    """Check the caller's wishes."""
    if sum(wish is not None for wish in (steps, timesteps, sigmas)) != 1:
        raise RequestError(
            f"got steps={steps!r}, timesteps={timesteps!r}, sigmas={sigmas!r}; "
            "pass exactly one of them, e.g. steps=20"
        )
    if steps is not None:
        if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= train_steps:
            raise RequestError(
                f"steps: got {steps!r}, expected a whole number from 1 to {train_steps}, "
                "the training steps of the model; try steps=20"
            )
        return Visits(steps, None, None)
    if timesteps is not None:
        return Visits(None, _falling("timesteps", timesteps, 1, train_steps - 1), None)
    assert sigmas is not None
    return Visits(None, None, _falling("sigmas", sigmas, 2, math.inf))


def _falling(name: str, values: Sequence[float], least: int, limit: float) -> Float64s:
    """Check a list of numbers in the request: at least so many, falling, from 0 to a limit."""
    try:
        table = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        table = np.empty(0)
    in_range = np.all(np.isfinite(table) & (table >= 0) & (table <= limit))
    if table.ndim != 1 or len(table) < least or not in_range or np.any(np.diff(table) >= 0):
        raise RequestError(
            f"{name}: got {values!r}, expected at least {least} finite numbers from 0 to "
            f"{limit:g}, each below the one before"
        )
    return table
