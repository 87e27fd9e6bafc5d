"""Schedules: a run's table of noise levels, from diffusers' scheduler configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgediffusion.errors import RequestError, ScheduleError, choices
from edgediffusion.options import CLASS_OF, Options, choose_sampler, read_options
from edgediffusion.tables import TABLES, Float64s, Rows, Visits

SPACINGS: Final = ("leading", "trailing", "linspace", "karras")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The table of a run.

    sampler : a name in ``edgediffusion.SAMPLERS``.
    prediction : what the model predicts: ``epsilon``, ``v_prediction`` or ``sample``.
    rows : one for each call of the model.
    init_noise_scale : what unit noise is multiplied by to become the first state.
    spacing : how the levels were laid out: leading, trailing, linspace, karras, or timesteps or
        sigmas where the request listed them.
    clip : largest magnitude of a predicted x0, None for no limit.
    dropped : options of the configuration that the sampler has no use for.
    """

    sampler: str
    prediction: str
    rows: Rows
    init_noise_scale: float
    spacing: str
    clip: float | None = None
    dropped: tuple[str, ...] = ()


def schedule_from_config(
    config: Mapping[str, Any],
    steps: int | None = None,
    sampler: str | None = None,
    spacing: str | None = None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
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
        ``leading``, ``trailing``, ``linspace`` or ``karras``, in place of the configuration's.
    timesteps : sequence of float, optional
        Instead of ``steps``: falling timesteps to visit (all samplers but pndm).
    sigmas : sequence of float, optional
        Instead of ``steps``: falling sigmas, one more than steps, the last usually 0
        (samplers that work in sigma: euler, euler_ancestral, dpmpp_2m).

    Returns
    -------
    Schedule
        All numbers are Python floats, so that float32 arrays stay float32.

    Raises
    ------
    RequestError
        For an unknown sampler or spacing, or steps, timesteps or sigmas that make no sense.
    ScheduleError
        For a configuration that is broken, or an option in it that the sampler lacks.

    Source: diffusers 0.42.1, the class of that name.
    """
    name = choose_sampler(config, sampler)
    options, dropped = read_options(config, name)
    if spacing is not None:
        options |= _spacing_options(spacing, name, options)
    train_steps = options["num_train_timesteps"]
    visits = _checked(steps, timesteps, sigmas, train_steps)
    rows, init_noise_scale = TABLES[CLASS_OF[name]](options, visits)
    if rows[0].alpha == 0 and options["prediction_type"] == "epsilon":
        raise ScheduleError(
            "rescale_betas_zero_snr: the first step is pure noise, from which a model with "
            f"prediction_type 'epsilon' says nothing about the picture (sampler {name!r}); "
            "use spacing='leading', or the sampler euler"
        )
    return Schedule(
        sampler=name,
        prediction=options["prediction_type"],
        rows=rows,
        init_noise_scale=init_noise_scale,
        spacing=_spacing_name(options, visits),
        clip=float(options["clip_sample_range"]) if options.get("clip_sample") else None,
        dropped=dropped,
    )


def _spacing_options(spacing: str, sampler: str, options: Options) -> dict[str, Any]:
    """Translate the request's word for the spacing into the configuration's options."""
    if spacing not in SPACINGS:
        raise RequestError(f"schedule: got {spacing!r}; {choices(str(spacing), SPACINGS)}")
    if spacing != "karras":
        return {"timestep_spacing": spacing, "use_karras_sigmas": False}
    if "use_karras_sigmas" not in options:
        raise RequestError(
            f"schedule: sampler {sampler!r} has no karras spacing; use leading, trailing or "
            "linspace, or the sampler euler or dpmpp_2m"
        )
    return {"use_karras_sigmas": True}


def _spacing_name(options: Options, visits: Visits) -> str:
    if visits.steps is None:
        return "sigmas" if visits.timesteps is None else "timesteps"
    return "karras" if options.get("use_karras_sigmas") else str(options["timestep_spacing"])


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
