"""Tables of models that are told a continuous time: flow matching, EDM, iPNDM."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from edgediffusion.errors import RequestError
from edgediffusion.levels import Float64s, Level, Rows, Visits, call, exploding, flowing
from edgediffusion.scheduler_classes import Options
from edgediffusion.spacing import exponential_sigmas, karras_sigmas
from edgediffusion.tables.exploding import heun_calls
from edgediffusion.tables.sigmas import check_falling, spaced_sigmas


def shifted(options: Options, sigmas: Float64s, name: str = "shift") -> Float64s:
    """Shift sigmas of a flow towards noise: Esser et al. 2024 (arXiv:2403.03206), equation 23."""
    if options.get("use_dynamic_shifting"):
        mu = float(options["mu"])
        shift = math.exp(mu) if options["time_shift_type"] == "exponential" else mu
    else:
        shift = float(options[name])
    return np.asarray(shift * sigmas / (1 + (shift - 1) * sigmas), dtype=np.float64)


def stretched(options: Options, sigmas: Float64s) -> Float64s:
    """Stretch sigmas so that the last step begins at ``shift_terminal``."""
    if not options["shift_terminal"]:
        return sigmas
    scale = (1 - sigmas[-1]) / (1 - options["shift_terminal"])
    return np.asarray(1 - (1 - sigmas) / scale, dtype=np.float64)


def flow_list(visits: Visits, train_steps: int) -> Float64s:
    """Read the request's list as sigmas of a flow before any shift; the final 0 goes unsaid."""
    if visits.timesteps is not None:
        return visits.timesteps / train_steps
    assert visits.sigmas is not None
    if visits.sigmas[0] > 1:
        raise RequestError(
            f"sigmas: got {visits.sigmas[0]:g}, but those of a flow lie between 0 and 1"
        )
    return visits.sigmas[:-1] if visits.sigmas[-1] == 0 else visits.sigmas


def _flow_spread(options: Options, visits: Visits) -> tuple[Float64s | None, Float64s]:
    """Lay out timesteps, where the request lists them, and sigmas of a flow."""
    train_steps = options["num_train_timesteps"]
    if visits.steps is None:
        raw = flow_list(visits, train_steps)
    else:
        # The ends are the training's own, already shifted once where the shift is fixed.
        ends = np.array([1.0, 1 / train_steps])
        fixed = not options.get("use_dynamic_shifting")
        high, low = shifted(options, ends) if fixed else ends
        raw = np.linspace(float(np.float32(high)), float(np.float32(low)), visits.steps)
    return visits.timesteps, shifted(options, raw)


def flow_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out flow_euler: straight along the flow, or all noise fresh in every step."""
    train_steps = options["num_train_timesteps"]
    timesteps, sigmas = _flow_spread(options, visits)
    sigmas = stretched(options, sigmas)
    spaced = spaced_sigmas(options, sigmas[[-1, 0]], len(sigmas))
    sigmas = np.asarray(sigmas if spaced is None else spaced, np.float32).astype(np.float64)
    check_falling(sigmas, visits)
    if options["invert_sigmas"]:  # such models are told how much of the picture there is
        timesteps = (1 - sigmas) * train_steps
    elif timesteps is None:
        timesteps = sigmas * train_steps
    levels = pairwise(flowing([*sigmas, 0.0]))
    more: dict[str, Any] = {"down": 0.0} if options["stochastic_sampling"] else {}
    rows = (
        call(float(np.float32(t)), level, end, **more)
        for t, (level, end) in zip(timesteps, levels, strict=True)
    )
    return tuple(rows), 1.0


def flow_heun_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out flow_heun: a call at the start of each step and one at its end, save the last."""
    timesteps, sigmas = _flow_spread(options, visits)
    sigmas = sigmas.astype(np.float32).astype(np.float64)
    check_falling(sigmas, visits)
    if timesteps is None:
        timesteps = sigmas * options["num_train_timesteps"]
    return heun_calls(timesteps.astype(np.float32), flowing([*sigmas, 0.0])), 1.0


def edm_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out EDM's levels: Karras et al. 2022 (arXiv:2206.00364), table 1."""
    low, high = float(options["sigma_min"]), float(options["sigma_max"])
    if visits.timesteps is not None:
        raise RequestError("timesteps: EDM models know sigmas only; pass steps or sigmas")
    if visits.sigmas is not None:
        sigmas = visits.sigmas
    elif options["sigma_schedule"] == "karras":
        sigmas = karras_sigmas(low, high, visits.steps or 1, float(options["rho"]))
    else:
        sigmas = exponential_sigmas(low, high, visits.steps or 1)
    if visits.sigmas is None:
        final = sigmas[-1] if options["final_sigmas_type"] == "sigma_min" else 0.0
        sigmas = np.append(sigmas, final)
    check_falling(sigmas[:-1], visits)
    sigmas = sigmas.astype(np.float32).astype(np.float64)
    data = float(options["sigma_data"])
    rows = (
        call(
            0.25 * math.log(level.sigma),
            level,
            end,
            input_scale=1 / math.hypot(level.sigma, data),
        )
        for level, end in pairwise(exploding(sigmas))
    )
    return tuple(rows), math.hypot(high, 1)


def ipndm_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out ipndm: sigma is the squared sine of time, which runs from 1 to 0."""
    if visits.steps is None:
        raise RequestError("timesteps: sampler 'ipndm' needs an even spacing; pass steps instead")
    if options["trained_betas"] is not None:
        sigmas = np.asarray(options["trained_betas"], dtype=np.float64)
        if sigmas.shape != (visits.steps + 1,):
            raise RequestError(
                f"steps: got {visits.steps}, but trained_betas lists {sigmas.size} levels; "
                f"use {sigmas.size - 1} steps"
            )
    else:
        sigmas = np.sin(np.linspace(1, 0, visits.steps + 1) * (math.pi / 2)) ** 2
    sigmas = sigmas.astype(np.float32).astype(np.float64)
    levels = [Level(math.sqrt(1 - s * s), float(s)) for s in sigmas]
    rows = (
        call(math.atan2(level.sigma, level.alpha) / math.pi * 2, level, end)
        for level, end in pairwise(levels)
    )
    return tuple(rows), 1.0
