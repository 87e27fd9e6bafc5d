"""diffusers' scheduler classes as data: their options, defaults, and what of them we have.

Source: diffusers 0.42.1, the constructors in ``diffusers.schedulers``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Options = Mapping[str, Any]
Values = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True)
class SchedulerClass:
    """One class.

    defaults : its options and their defaults.
    only : for options with a list of values, those that the class knows and we have.
    aliases : values that the class itself replaces, option by option.
    unused : options that the class takes and ignores.
    arguments : what its ``step`` and ``set_timesteps`` take besides, with their defaults; these are
        never read from a configuration.
    """

    defaults: Options
    only: Values
    aliases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()
    arguments: Options = field(default_factory=dict)


def _without(options: Options, *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


_BETAS: Final[dict[str, Any]] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
}
_LATENT_BETAS: Final = _BETAS | {"beta_start": 0.00085, "beta_end": 0.012}
_THRESHOLDING: Final[dict[str, Any]] = {
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
}
_CLIPPING: Final[dict[str, Any]] = {"clip_sample": False, "clip_sample_range": 1.0}
_SPACED: Final[dict[str, Any]] = {
    "timestep_spacing": "linspace",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    # Of most classes these two are not in the signature; yet diffusers' spacings find them where
    # the configuration of another class has them.
    "sigma_min": None,
    "sigma_max": None,
}
_FLOW: Final[dict[str, Any]] = {"use_flow_sigmas": False, "flow_shift": 1.0}
_SHIFTING: Final[dict[str, Any]] = {
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}

_SOME_BETAS: Final = ("linear", "scaled_linear", "squaredcos_cap_v2")
_SPACINGS: Final = ("leading", "trailing", "linspace")
_PREDICTIONS: Final = ("epsilon", "v_prediction", "sample")
_FINAL_SIGMAS: Final = ("zero", "sigma_min")
_USUAL: Final[Values] = {
    "beta_schedule": _SOME_BETAS,
    "prediction_type": _PREDICTIONS,
    "timestep_spacing": _SPACINGS,
}
_NOT_SAMPLE: Final[Values] = {**_USUAL, "prediction_type": ("epsilon", "v_prediction")}
_WITH_FLOW: Final[Values] = {**_USUAL, "prediction_type": (*_PREDICTIONS, "flow_prediction")}
_VARIANCES: Final = (None, "fixed_small", "fixed_small_log", "fixed_large", "learned")
_TIME_SHIFTS: Final = ("exponential", "linear")
_MU: Final[Options] = {"mu": None}

_SOLVER: Final = _BETAS | _SPACED | _THRESHOLDING | _FLOW | _SHIFTING
_KARRAS_FAMILY: Final = _LATENT_BETAS | _SPACED
_DPM_OPTIONS: Final = _THRESHOLDING | {
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
    "final_sigmas_type": "zero",
}
_DPM_ONLY: Final[Values] = {
    "solver_order": (1, 2, 3),
    "solver_type": ("midpoint", "heun"),
    "final_sigmas_type": _FINAL_SIGMAS,
    "time_shift_type": _TIME_SHIFTS,
    "variance_type": (*_VARIANCES, "learned_range"),
}
_DPM_ALIASES: Final = {
    "algorithm_type": {"deis": "dpmsolver++"},
    "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
}
_DPM_TYPES: Final = ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver")
_CONSISTENCY: Final = (
    _LATENT_BETAS
    | _THRESHOLDING
    | _CLIPPING
    | {
        "beta_schedule": "scaled_linear",
        "original_inference_steps": 50,
        "set_alpha_to_one": True,
        "timestep_spacing": "leading",
        "timestep_scaling": 10.0,
        "rescale_betas_zero_snr": False,
    }
)
_EDM: Final[dict[str, Any]] = {
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "rho": 7.0,
    "final_sigmas_type": "zero",
}
_EDM_ONLY: Final[Values] = {
    "prediction_type": ("epsilon", "v_prediction"),
    "sigma_schedule": ("karras", "exponential"),
    "final_sigmas_type": _FINAL_SIGMAS,
}

SCHEDULERS: Final[Mapping[str, SchedulerClass]] = {
    "DDIMScheduler": SchedulerClass(
        defaults=_BETAS
        | _THRESHOLDING
        | {
            "timestep_spacing": "leading",
            "set_alpha_to_one": True,
            "clip_sample": True,
            "clip_sample_range": 1.0,
            "rescale_betas_zero_snr": False,
        },
        only=_USUAL,
        arguments={"eta": 0.0},
    ),
    "DDPMScheduler": SchedulerClass(
        defaults=_BETAS
        | _THRESHOLDING
        | {
            "timestep_spacing": "leading",
            "variance_type": "fixed_small",
            "clip_sample": True,
            "clip_sample_range": 1.0,
            "rescale_betas_zero_snr": False,
        },
        only={
            **_USUAL,
            "beta_schedule": (*_SOME_BETAS, "laplace", "sigmoid"),
            # diffusers takes the root of a negative logarithm for "fixed_large_log".
            "variance_type": (*_VARIANCES[1:], "learned_range"),
        },
    ),
    "PNDMScheduler": SchedulerClass(
        defaults=_BETAS
        | {"timestep_spacing": "leading", "set_alpha_to_one": False, "skip_prk_steps": False},
        only=_NOT_SAMPLE,
    ),
    "LMSDiscreteScheduler": SchedulerClass(defaults=_BETAS | _SPACED, only=_USUAL),
    "EulerDiscreteScheduler": SchedulerClass(
        defaults=_BETAS
        | _SPACED
        | {
            "interpolation_type": "linear",
            "timestep_type": "discrete",
            "rescale_betas_zero_snr": False,
            "final_sigmas_type": "zero",
        },
        only={
            **_USUAL,
            "interpolation_type": ("linear", "log_linear"),
            "timestep_type": ("discrete", "continuous"),
            "final_sigmas_type": _FINAL_SIGMAS,
        },
    ),
    "EulerAncestralDiscreteScheduler": SchedulerClass(
        defaults=_BETAS | {"timestep_spacing": "linspace", "rescale_betas_zero_snr": False},
        only=_NOT_SAMPLE,
    ),
    "HeunDiscreteScheduler": SchedulerClass(
        defaults=_KARRAS_FAMILY | _CLIPPING,
        only={**_USUAL, "beta_schedule": (*_SOME_BETAS, "exp")},
    ),
    "KDPM2DiscreteScheduler": SchedulerClass(defaults=_KARRAS_FAMILY, only=_NOT_SAMPLE),
    "KDPM2AncestralDiscreteScheduler": SchedulerClass(defaults=_KARRAS_FAMILY, only=_NOT_SAMPLE),
    "DPMSolverSDEScheduler": SchedulerClass(
        defaults=_KARRAS_FAMILY | {"noise_sampler_seed": None},
        only=_NOT_SAMPLE,
        arguments={"noise_sampler_kind": "torch-cpu"},
    ),
    "DPMSolverMultistepScheduler": SchedulerClass(
        defaults=_SOLVER
        | _DPM_OPTIONS
        | {
            "use_lu_lambdas": False,
            "lambda_min_clipped": None,
            "variance_type": None,
            "rescale_betas_zero_snr": False,
        },
        only={**_WITH_FLOW, **_DPM_ONLY, "algorithm_type": _DPM_TYPES},
        aliases=_DPM_ALIASES,
        arguments=_MU,
    ),
    "DPMSolverSinglestepScheduler": SchedulerClass(
        defaults=_without(
            _SOLVER | _DPM_OPTIONS,
            *("timestep_spacing", "steps_offset", "euler_at_final"),
        )
        | {"lower_order_final": False, "lambda_min_clipped": None, "variance_type": None},
        only={**_WITH_FLOW, **_DPM_ONLY, "algorithm_type": _DPM_TYPES[:3]},
        aliases=_DPM_ALIASES,
        arguments=_MU,
    ),
    "UniPCMultistepScheduler": SchedulerClass(
        defaults=_SOLVER
        | {
            "solver_order": 2,
            "predict_x0": True,
            "solver_type": "bh2",
            "lower_order_final": True,
            "disable_corrector": (),
            "solver_p": None,
            "final_sigmas_type": "zero",
            "rescale_betas_zero_snr": False,
            "shift_terminal": None,
        },
        only={
            **_WITH_FLOW,
            "solver_order": (1, 2, 3, 4),
            "solver_type": ("bh1", "bh2"),
            "solver_p": (None,),
            "final_sigmas_type": _FINAL_SIGMAS,
            "time_shift_type": _TIME_SHIFTS,
        },
        aliases={"solver_type": {"midpoint": "bh2", "heun": "bh2", "logrho": "bh2"}},
        arguments=_MU,
    ),
    "DEISMultistepScheduler": SchedulerClass(
        defaults=_SOLVER
        | {
            "solver_order": 2,
            "algorithm_type": "deis",
            "solver_type": "logrho",
            "lower_order_final": True,
        },
        only={
            **_WITH_FLOW,
            "solver_order": (1, 2, 3),
            "algorithm_type": ("deis",),
            "solver_type": ("logrho",),
            "time_shift_type": _TIME_SHIFTS,
        },
        aliases={
            "algorithm_type": {"dpmsolver": "deis", "dpmsolver++": "deis"},
            "solver_type": {s: "logrho" for s in ("midpoint", "heun", "bh1", "bh2")},
        },
        arguments=_MU,
    ),
    "SASolverScheduler": SchedulerClass(
        defaults=_BETAS
        | _SPACED
        | _THRESHOLDING
        | _FLOW
        | {
            "predictor_order": 2,
            "corrector_order": 2,
            "tau_func": None,
            "algorithm_type": "data_prediction",
            "lower_order_final": True,
            "lambda_min_clipped": None,
            "variance_type": None,
        },
        only={
            **_WITH_FLOW,
            "predictor_order": (1, 2, 3, 4),
            "corrector_order": (1, 2, 3, 4),
            "tau_func": (None,),  # JSON holds no function
            "algorithm_type": ("data_prediction", "noise_prediction"),
            "variance_type": (*_VARIANCES, "learned_range"),
        },
    ),
    "LCMScheduler": SchedulerClass(
        defaults=_CONSISTENCY,
        only=_USUAL,
        unused=frozenset({"timestep_spacing", "steps_offset"}),
    ),
    "TCDScheduler": SchedulerClass(
        defaults=_CONSISTENCY,
        only=_USUAL,
        unused=frozenset({"timestep_spacing", "steps_offset", *_CLIPPING, *_THRESHOLDING}),
        arguments={"eta": 0.3},
    ),
    "IPNDMScheduler": SchedulerClass(
        defaults={"num_train_timesteps": 1000, "trained_betas": None}, only={}
    ),
    "EDMEulerScheduler": SchedulerClass(defaults=_EDM, only=_EDM_ONLY),
    "EDMDPMSolverMultistepScheduler": SchedulerClass(
        defaults=_EDM | _DPM_OPTIONS,
        only={**_EDM_ONLY, **_DPM_ONLY, "algorithm_type": _DPM_TYPES[:2]},
        aliases=_DPM_ALIASES,
    ),
    "FlowMatchEulerDiscreteScheduler": SchedulerClass(
        defaults=_SHIFTING
        | {
            "num_train_timesteps": 1000,
            "shift": 1.0,
            "base_shift": 0.5,
            "max_shift": 1.15,
            "base_image_seq_len": 256,
            "max_image_seq_len": 4096,
            "invert_sigmas": False,
            "shift_terminal": None,
            "use_karras_sigmas": False,
            "use_exponential_sigmas": False,
            "use_beta_sigmas": False,
            "sigma_min": None,
            "sigma_max": None,
            "stochastic_sampling": False,
        },
        only={"time_shift_type": _TIME_SHIFTS},
        arguments=_MU,
    ),
    "FlowMatchHeunDiscreteScheduler": SchedulerClass(
        defaults={"num_train_timesteps": 1000, "shift": 1.0}, only={}
    ),
}
