"""Tables of noise levels: how each of diffusers' scheduler classes lays out the rows of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from edgediffusion.levels import Level, Row, Rows, Visits
from edgediffusion.scheduler_classes import Options
from edgediffusion.tables.continuous import edm_rows, flow_heun_rows, flow_rows, ipndm_rows
from edgediffusion.tables.exploding import (
    dpm_2_ancestral_rows,
    dpm_2_rows,
    dpmpp_sde_rows,
    euler_ancestral_rows,
    euler_rows,
    heun_rows,
)
from edgediffusion.tables.preserving import (
    deis_rows,
    dpm_rows,
    edm_dpm_rows,
    sa_rows,
    singlestep_rows,
    trained_level,
    unipc_rows,
)
from edgediffusion.tables.whole import ddim_rows, ddpm_rows, lcm_rows, pndm_rows, tcd_rows


def _own_level(_: Options, row: Row) -> Level:
    return row.level


class Layout(NamedTuple):
    """How a class lays out its table.

    rows : gives a run's rows, and the scale that turns unit noise into its first state.
    calls : rows of a step, save perhaps the last; 0 where `rows` itself leaves out `Visits.skip`.
    first : gives the noise to lay a picture under, for a run that begins at that row.
    """

    rows: Callable[[Options, Visits], tuple[Rows, float]]
    calls: int = 1
    first: Callable[[Options, Row], Level] = _own_level


TABLES: Final[Mapping[str, Layout]] = {
    "DDIMScheduler": Layout(ddim_rows),
    "DDPMScheduler": Layout(ddpm_rows),
    "PNDMScheduler": Layout(pndm_rows, calls=0),
    "LMSDiscreteScheduler": Layout(euler_rows),
    "EulerDiscreteScheduler": Layout(euler_rows),
    "EulerAncestralDiscreteScheduler": Layout(euler_ancestral_rows),
    "HeunDiscreteScheduler": Layout(heun_rows, calls=2),
    "KDPM2DiscreteScheduler": Layout(dpm_2_rows, calls=2),
    "KDPM2AncestralDiscreteScheduler": Layout(dpm_2_ancestral_rows, calls=2),
    "DPMSolverSDEScheduler": Layout(dpmpp_sde_rows, calls=2),
    "DPMSolverMultistepScheduler": Layout(dpm_rows),
    "DPMSolverSinglestepScheduler": Layout(singlestep_rows, calls=0),
    "UniPCMultistepScheduler": Layout(unipc_rows),
    "DEISMultistepScheduler": Layout(deis_rows),
    "SASolverScheduler": Layout(sa_rows, first=trained_level),
    "LCMScheduler": Layout(lcm_rows),
    "TCDScheduler": Layout(tcd_rows),
    "IPNDMScheduler": Layout(ipndm_rows),
    "EDMEulerScheduler": Layout(edm_rows),
    "EDMDPMSolverMultistepScheduler": Layout(edm_dpm_rows),
    "FlowMatchEulerDiscreteScheduler": Layout(flow_rows),
    "FlowMatchHeunDiscreteScheduler": Layout(flow_heun_rows, calls=2),
}
