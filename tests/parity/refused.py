"""What diffusers itself refuses or breaks on: data.

A combination of options that diffusers cannot run is no row of the matrix; a test runs each of
them to see that it is still so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.parity.rows import STEPS, Row

NOT_FINITE: Final = "not finite"
_EQUAL_SIGMAS: Final = "the last two sigmas are equal, and the order divides by their distance"
_SAMPLE: Final = {"prediction_type": {"sample"}}


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Rows with certain values of certain options, which diffusers cannot run.

    samplers : of which samplers.
    options : for each option, the values that are meant; None is its default.
    error : name of the exception, or `NOT_FINITE` where the trajectory turns NaN or infinite.
    reason : what is the matter with them.
    steps : at which numbers of steps.
    """

    samplers: Collection[str]
    options: Mapping[str, Collection[Any]]
    error: str
    reason: str
    steps: Collection[int] = STEPS

    def holds(self, row: Row) -> bool:
        """Say whether a row is among them."""
        values = row.config | row.arguments | {"strength": row.strength}
        meant = all(values.get(key) in allowed for key, allowed in self.options.items())
        return row.sampler in self.samplers and row.steps in self.steps and meant


REFUSALS: Final = (
    Refusal(
        samplers={"euler_ancestral", "dpm_2", "dpm_2_ancestral", "dpmpp_sde"},
        options=_SAMPLE,
        error="NotImplementedError",
        reason="the class has no sample prediction",
    ),
    Refusal(
        samplers={"edm_dpmpp_2m"},
        options=_SAMPLE,
        error="ValueError",
        reason="the class has no sample prediction",
    ),
    Refusal(
        samplers={"ddpm"},
        options={"variance_type": {"fixed_large_log"}},
        error=NOT_FINITE,
        reason="the class takes the root of the logarithm of beta, which is negative",
    ),
    Refusal(
        samplers={"dpm_multistep", "dpm_singlestep", "edm_dpmpp_2m"},
        options={"algorithm_type": {"deis"}, "final_sigmas_type": {None, "zero"}},
        error="ValueError",
        reason="the class checks the final sigma before it replaces deis by dpmsolver++",
    ),
    Refusal(
        samplers={"dpm_multistep"},
        options={"algorithm_type": {"sde-dpmsolver"}, "solver_order": {3}},
        error="UnboundLocalError",
        reason="the class has no third order for sde-dpmsolver",
    ),
    Refusal(
        samplers={"edm_dpmpp_2m"},
        options={"algorithm_type": {"sde-dpmsolver++"}, "solver_order": {3}},
        error="UnboundLocalError",
        reason="the class has no third order for sde-dpmsolver++",
    ),
    *(
        Refusal(
            samplers={"dpm_multistep"},
            options={spacing: {True}, "final_sigmas_type": {"sigma_min"}, "solver_order": {3}},
            error=NOT_FINITE,
            reason=_EQUAL_SIGMAS,
            steps={20, 50},
        )
        for spacing in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
    ),
    Refusal(
        samplers={"edm_dpmpp_2m"},
        options={"final_sigmas_type": {"sigma_min"}, "solver_type": {"heun"}, "solver_order": {2}},
        error=NOT_FINITE,
        reason=_EQUAL_SIGMAS,
        steps={20, 50},
    ),
    Refusal(
        samplers={"edm_dpmpp_2m"},
        options={
            "final_sigmas_type": {"sigma_min"},
            "solver_order": {3},
            "lower_order_final": {None, True},
            "euler_at_final": {None, False},
        },
        error=NOT_FINITE,
        reason=_EQUAL_SIGMAS,
        steps={20, 50},
    ),
    Refusal(
        samplers={"edm_dpmpp_2m"},
        options={
            "final_sigmas_type": {"sigma_min"},
            "solver_order": {3},
            "lower_order_final": {False},
            "euler_at_final": {False},
        },
        error=NOT_FINITE,
        reason=_EQUAL_SIGMAS,
    ),
    Refusal(
        samplers={"ipndm"},
        options={"strength": {0.3, 0.75}},
        error="AttributeError",
        reason="the class has no add_noise",
    ),
    Refusal(
        samplers={"sa_solver"},
        options={"variance_type": {"learned", "learned_range"}},
        error="RuntimeError",
        reason="the class keeps the channels of the variance in the noise that it draws",
    ),
    Refusal(
        samplers={"lcm", "tcd"},
        options={"rescale_betas_zero_snr": {True}, "prediction_type": {None}},
        error=NOT_FINITE,
        reason="the first step is pure noise, of which epsilon tells nothing: a division by zero",
    ),
    Refusal(
        samplers={"unipc"},
        options={
            "final_sigmas_type": {None, "zero"},
            "lower_order_final": {False},
            "solver_order": {2},
        },
        error=NOT_FINITE,
        reason="the second order divides by the infinite last step",
    ),
    Refusal(
        samplers={"unipc"},
        options={
            "final_sigmas_type": {None, "zero"},
            "lower_order_final": {False},
            "solver_order": {3},
        },
        error="_LinAlgError",
        reason="the third order divides by the infinite last step",
    ),
    Refusal(
        samplers={"unipc"},
        options={"final_sigmas_type": {None, "zero"}, "predict_x0": {False}},
        error=NOT_FINITE,
        reason="a step that ends without noise multiplies 0 by infinity",
    ),
    Refusal(
        samplers={"unipc"},
        options={"final_sigmas_type": {None, "zero"}, "solver_type": {"bh1"}},
        error=NOT_FINITE,
        reason="a step that ends without noise multiplies 0 by infinity",
    ),
    Refusal(
        samplers={"unipc"},
        options={"use_flow_sigmas": {True}, "use_exponential_sigmas": {True}},
        error=NOT_FINITE,
        reason="the class lays out sigmas beyond 1, of which a flow has none",
    ),
    Refusal(
        samplers={"dpm_2_ancestral"},
        options={"beta_schedule": {"squaredcos_cap_v2"}},
        error=NOT_FINITE,
        reason="a difference of squares of large sigmas is negative in float32",
        steps={5},
    ),
)


def refusal(row: Row) -> Refusal | None:
    """Find out why diffusers cannot run a row; None if it can."""
    return next((each for each in REFUSALS if each.holds(row)), None)
