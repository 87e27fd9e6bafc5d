"""Tables of the samplers that visit whole timesteps: DDIM, DDPM, PNDM, LCM, TCD."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from edgediffusion.betas import alphas_cumprod
from edgediffusion.errors import RequestError, ScheduleError
from edgediffusion.levels import Level, Row, Rows, Visits, call
from edgediffusion.scheduler_classes import Options
from edgediffusion.spacing import spaced_timesteps

LevelAt = Callable[[float], Level]
PRK_STEPS = 3  # the steps that PNDM makes by Runge-Kutta, four calls each, before multistep


def _levels(options: Options) -> LevelAt:
    """Look levels up by timestep; before timestep 0 lies the final level."""
    table = alphas_cumprod(options)
    final = 1.0 if options.get("set_alpha_to_one", True) else float(table[0])

    def level(timestep: float) -> Level:
        product = float(table[int(timestep)]) if timestep >= 0 else final
        return Level(math.sqrt(product), math.sqrt(1 - product))

    return level


def _rounded_levels(options: Options) -> LevelAt:
    """Look levels up; sigma is the root of what is left of the product in float32, as in diffusers.

    Fresh noise at every step makes so much of a rounding that no other will do.
    """
    exact = _levels(options)

    def level(timestep: float) -> Level:
        alpha, _ = exact(timestep)
        return Level(alpha, math.sqrt(np.float32(1 - alpha**2)))

    return level


def _timesteps(options: Options, visits: Visits) -> list[float]:
    """Lay out the timesteps to visit."""
    train_steps = options["num_train_timesteps"]
    if visits.timesteps is not None:
        return [float(t) for t in np.round(visits.timesteps)]
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
    return [float(t) for t in timesteps]


def _steps(options: Options, visits: Visits) -> list[tuple[float, float]]:
    """List each step as the timestep it begins at and the one it goes down to; -1 is the end.

    diffusers' stride is the rounded one wherever the next timestep is; the two differ a little
    where the spacing is not even.
    """
    timesteps = _timesteps(options, visits)
    if visits.steps is None:
        return list(pairwise([*timesteps, -1.0]))
    stride = options["num_train_timesteps"] // visits.steps
    return [(t, t - stride) for t in timesteps]


def _posterior_deviation(start: Level, end: Level) -> float:
    """Deviation of the state at `end`, given x0 and the state at `start`: Ho et al. 2020, (7)."""
    return (end.sigma / start.sigma) * math.sqrt(max(0.0, 1 - (start.alpha / end.alpha) ** 2))


def ddim_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out ddim; with eta, each step goes further down and takes fresh noise."""
    level = _levels(options)

    def row(timestep: float, before: float) -> Row:
        start, end = level(timestep), level(before)
        fresh = options["eta"] * _posterior_deviation(start, end)
        down = math.sqrt(max(0.0, end.sigma**2 - fresh**2))
        return call(timestep, start, end, down=down, fresh=fresh)

    return tuple(row(*step) for step in _steps(options, visits)), 1.0


def ddpm_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out ddpm: down to the posterior's mean, then fresh noise of a variance of choice."""
    level = _levels(options)

    def row(timestep: float, before: float) -> Row:
        start, end = level(timestep), level(before)
        deviation = _posterior_deviation(start, end)
        down = math.sqrt(max(0.0, end.sigma**2 - deviation**2))
        large = options["variance_type"] == "fixed_large"
        fresh = math.sqrt(1 - (start.alpha / end.alpha) ** 2) if large else deviation
        # A variance of zero is clamped, and noise drawn all the same.
        fresh = max(fresh, 1e-10) if timestep > 0 else 0.0
        return call(timestep, start, end, down=down, fresh=fresh)

    steps = pairwise([*_timesteps(options, visits), -1.0])
    return tuple(row(*step) for step in steps), 1.0


def pndm_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out pndm: by multistep alone, or after three steps by Runge-Kutta.

    Begun in the middle, diffusers leaves out calls, and steps with those that stay as if they were
    the first ones of a whole run.
    """
    if visits.steps is None:
        raise RequestError("timesteps: sampler 'pndm' needs an even spacing; pass steps instead")
    level = _levels(options)
    stride = options["num_train_timesteps"] // visits.steps
    timesteps = _timesteps(options, visits)
    if not options["skip_prk_steps"]:
        _check_runge_kutta(timesteps, visits.skip)
        rest = [call(t, level(t), level(t - stride)) for t in timesteps[PRK_STEPS:]]
        return (*_prk_rows(level, timesteps, stride), *rest), 1.0
    # The second timestep is visited twice: its first call makes the step that led there again.
    told = [*timesteps[:2], *timesteps[1:]][visits.skip :]
    rows = [call(t, level(t), level(t - stride)) for t in told]
    rows[1:2] = [call(t, level(t), level(t), start=level(t + stride)) for t in told[1:2]]
    return tuple(rows), 1.0


def _check_runge_kutta(timesteps: list[float], skip: int) -> None:
    if len(timesteps) <= PRK_STEPS:
        raise RequestError(
            f"steps: sampler 'pndm' without skip_prk_steps needs at least {PRK_STEPS + 1}, "
            f"got {len(timesteps)}; take more, or set skip_prk_steps"
        )
    if skip:  # diffusers' class would step from the noisy end all the same, and blow up
        raise RequestError(
            "strength: sampler 'pndm' without skip_prk_steps cannot begin in the middle; "
            "set skip_prk_steps, or use another sampler"
        )


def _prk_rows(level: LevelAt, timesteps: list[float], stride: int) -> list[Row]:
    """Four calls for each of the first steps: at its start, twice half way, at its end."""
    rows = []
    half = stride // 2
    for start, end in pairwise(timesteps[: PRK_STEPS + 1]):
        middle = end + half
        for t, before in ((start, start - half), (middle, middle), (middle, middle - half)):
            rows.append(call(t, level(t), level(before), start=level(start)))
        rows.append(call(end, level(end), level(end), start=level(start)))
    return rows


def _consistency_timesteps(options: Options, visits: Visits) -> list[float]:
    """Choose among the timesteps that a consistency model was distilled on."""
    if visits.steps is None:
        return _timesteps(options, visits)
    train_steps, original = options["num_train_timesteps"], options["original_inference_steps"]
    if original > train_steps:
        raise ScheduleError(
            f"original_inference_steps: got {original}, more than num_train_timesteps "
            f"{train_steps}; repair scheduler_config.json"
        )
    if visits.steps > original:
        raise RequestError(
            f"steps: got {visits.steps}, but the model was distilled on {original} "
            "(original_inference_steps); use 1 to 8"
        )
    distilled = np.arange(original, 0, -1, dtype=np.float64) * (train_steps // original) - 1
    chosen = np.floor(np.linspace(0, original, visits.steps, endpoint=False)).astype(int)
    return [float(t) for t in distilled[chosen]]


def lcm_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out lcm: each step goes down to the picture, and all noise is fresh."""
    level, timesteps = _rounded_levels(options), _consistency_timesteps(options, visits)
    levels = [*(level(t) for t in timesteps), Level(1.0, 0.0)]
    steps = zip(timesteps, pairwise(levels), strict=True)
    return tuple(call(t, start, end, down=0.0) for t, (start, end) in steps), 1.0


def tcd_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out tcd: each step goes down beyond its end by a share eta of the time, then back up."""
    level, timesteps = _rounded_levels(options), _consistency_timesteps(options, visits)

    def row(timestep: float, before: float) -> Row:
        end = level(before)
        down = level(math.floor((1 - np.float32(options["eta"])) * np.float32(before)))
        return call(timestep, level(timestep), end, down=end.alpha / down.alpha * down.sigma)

    return tuple(row(*step) for step in pairwise([*timesteps, 0.0])), 1.0
