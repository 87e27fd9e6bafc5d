"""Tables of the DPM-Solver family: spaced in sigma, stepped in the variance-preserving state.

With ``use_flow_sigmas`` the same solvers step along a straight flow instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from edgediffusion.errors import RequestError
from edgediffusion.levels import Float64s, Level, Row, Rows, Visits, call, flowing, preserving
from edgediffusion.scheduler_classes import Options
from edgediffusion.spacing import SPACED_SIGMAS, spaced_timesteps
from edgediffusion.tables.continuous import edm_rows, flow_list, shifted, stretched
from edgediffusion.tables.sigmas import check_falling, sigma_table, spaced_sigmas, visit

FEW = 15  # steps below which lower_order_final counts


def _timesteps_and_sigmas(
    options: Options, visits: Visits, table: Float64s
) -> tuple[Float64s, Float64s]:
    """Choose timesteps, and sigmas: as many, or one more that says where the run ends."""
    if options.get("use_flow_sigmas"):
        return _flow_timesteps_and_sigmas(options, visits, table)
    # The cosine schedule needs its noisiest timesteps cut off; lambda is -log(sigma).
    least = options.get("lambda_min_clipped")
    cut = 0 if least is None else int(np.searchsorted(-np.log(table[::-1]), float(least)))
    grid = spaced_timesteps(
        options.get("timestep_spacing", "linspace"),
        visits.steps or 1,
        len(table),
        offset=options.get("steps_offset", 0),
        last=len(table) - cut,
        spare=1,
    )
    spread = np.interp(grid, np.arange(len(table)), table)
    timesteps, sigmas = visit(options, visits, table, grid, spread, table[[0, -1]])
    cosine = options["beta_schedule"] == "squaredcos_cap_v2" and "use_lu_lambdas" in options
    if not options.get("use_exponential_sigmas") and not options.get("use_beta_sigmas"):
        timesteps = timesteps if cosine else np.round(timesteps)
    return timesteps, sigmas


def _flow_timesteps_and_sigmas(
    options: Options, visits: Visits, table: Float64s
) -> tuple[Float64s, Float64s]:
    """Space sigmas along the flow, shifted to the noisy end."""
    train_steps, steps = options["num_train_timesteps"], visits.steps
    unipc = "shift_terminal" in options
    if steps is None:
        sigmas = flow_list(visits, train_steps)
        steps = len(sigmas)
    else:
        sigmas = np.linspace(1, 1 / train_steps, steps + 1)
        sigmas = sigmas[:-1] if unipc else 1 - sigmas[::-1][:-1]
    spaced = spaced_sigmas(options, table[[0, -1]], steps) if unipc else None
    if spaced is not None:
        sigmas = spaced / (spaced + 1) if options["use_karras_sigmas"] else spaced
        return sigmas * train_steps, sigmas
    sigmas = shifted(options, sigmas, "flow_shift")
    if unipc:
        sigmas = stretched(options, sigmas)
        sigmas[0] -= 1e-6 if abs(sigmas[0] - 1) < 1e-6 else 0.0
    return sigmas * train_steps, sigmas


def _rows(options: Options, visits: Visits, final: str) -> list[Row]:
    """Lay out a run that ends at ``final``: zero, sigma_min (of training) or last (once more)."""
    table = sigma_table(options)
    timesteps, sigmas = _timesteps_and_sigmas(options, visits, table)
    check_falling(sigmas[: len(timesteps)], visits)
    if len(sigmas) == len(timesteps):
        ends = {"zero": 0.0, "sigma_min": table[0], "last": sigmas[-1]}
        sigmas = np.append(sigmas, ends[final])
    rounded = sigmas.astype(np.float32)
    levels = flowing(rounded) if options.get("use_flow_sigmas") else preserving(rounded)
    return [
        call(float(int(timestep)), level, end)
        for timestep, (level, end) in zip(timesteps, pairwise(levels), strict=True)
    ]


def _spaced(options: Options) -> bool:
    """Whether sigmas are laid out by themselves, not by timesteps."""
    return any(options.get(flag) for flag in (*SPACED_SIGMAS, "use_flow_sigmas"))


def _ordered(rows: Sequence[Row], orders: Sequence[int]) -> Rows:
    """Set the orders; nothing but the first can end without noise."""
    return tuple(
        replace(row, order=1 if row.end.sigma == 0 else order)
        for row, order in zip(rows, orders, strict=True)
    )


def _lowered(options: Options, count: int, *, euler_last: bool) -> list[int]:
    """Orders that fall at the end of short runs, where higher ones are unstable."""
    few = count < FEW and options["lower_order_final"]
    orders = [options["solver_order"]] * count
    if few and count > 1:
        orders[-2] = min(2, orders[-2])
    if few or euler_last:
        orders[-1] = 1
    return orders


def _stochastic(options: Options, row: Row) -> Row:
    """Give a row the fresh noise of the SDE solvers: Lu et al. 2022 (arXiv:2211.01095), 4.4."""
    algorithm = options["algorithm_type"]
    if not algorithm.startswith("sde"):
        return row
    (alpha, sigma), end = row.start, row.end
    ratio = (end.sigma / end.alpha) / (sigma / alpha)  # exp(-h)
    if algorithm == "sde-dpmsolver":
        return replace(row, fresh=end.sigma * math.sqrt(ratio**-2 - 1))
    down = end.sigma * ratio
    return replace(row, down=down, fresh=math.sqrt(max(0.0, end.sigma**2 - down**2)))


def _multistep(options: Options, rows: Sequence[Row]) -> Rows:
    """Set orders and fresh noise of the multistep DPM-Solvers."""
    euler_last = bool(options["euler_at_final"]) or options["final_sigmas_type"] == "zero"
    orders = _lowered(options, len(rows), euler_last=euler_last)
    return _ordered([_stochastic(options, row) for row in rows], orders)


def dpm_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out the multistep DPM-Solver and DPM-Solver++, deterministic and stochastic."""
    return _multistep(options, _rows(options, visits, options["final_sigmas_type"])), 1.0


def edm_dpm_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out the multistep DPM-Solver++ over EDM's noise."""
    rows, scale = edm_rows(options, visits)
    return _multistep(options, rows), scale


def singlestep_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out the singlestep DPM-Solver: groups of calls, each group one step from its start."""
    rows = _rows(options, visits, options["final_sigmas_type"])
    ordered = _ordered(rows, _singlestep_orders(options, len(rows)))[visits.skip :]
    start, grouped = ordered[0].level, []
    for row in ordered:
        start = row.level if row.order == 1 else start
        grouped.append(_stochastic(options, replace(row, start=start)))
    return tuple(grouped), 1.0


def _singlestep_orders(options: Options, count: int) -> list[int]:
    """Count up to the solver's order again and again; the last calls as far as they go."""
    order = options["solver_order"]
    orders = [1 + i % order for i in range(count)]
    whole = count % order == 0
    to_zero = options["final_sigmas_type"] == "zero"
    if whole and order > 1 and (options["lower_order_final"] or to_zero):
        orders[-order:] = [*range(1, order), 1]  # the last group gives way to two short ones
    if to_zero:
        orders[-1] = 1
    return orders


def _counted_down(options: Options, rows: Sequence[Row], order: int) -> Rows:
    """Set an order, at the end no higher than the number of steps that are left."""
    count = len(rows)
    final = options["lower_order_final"]
    return _ordered(rows, [min(order, count - i) if final else order for i in range(count)])


def unipc_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out unipc."""
    last = _spaced(options) and options["final_sigmas_type"] == "sigma_min"
    rows = _rows(options, visits, "last" if last else options["final_sigmas_type"])
    return _counted_down(options, rows, options["solver_order"]), 1.0


def deis_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out deis."""
    rows = _rows(options, visits, "last" if _spaced(options) else "sigma_min")
    return _ordered(rows, _lowered(options, len(rows), euler_last=False)), 1.0


def sa_rows(options: Options, visits: Visits) -> tuple[Rows, float]:
    """Lay out sa_solver; `Row.order` is the predictor's."""
    rows = _rows(options, visits, "last" if _spaced(options) else "sigma_min")
    if rows[-1].end.sigma == 0:
        raise RequestError("sigmas: sa_solver cannot end without noise; end at 0.03, say")
    return _counted_down(options, rows, options["predictor_order"]), 1.0


def trained_level(options: Options, row: Row) -> Level:
    """Look up the noise of a row's whole timestep, whatever the row's own.

    diffusers' SA-Solver lays a picture to begin from under it.
    """
    (level,) = preserving([sigma_table(options)[int(row.timestep)]])
    return level
