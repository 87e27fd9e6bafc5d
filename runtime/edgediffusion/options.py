"""Scheduler configurations: which options a sampler reads from diffusers' JSON.

A sampler stands for one diffusers class with some options fixed. Its options come from the
configuration as ``Class.from_config(config)`` takes them: those that the class knows, the class's
own defaults for those that are absent; the rest are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from edgediffusion.errors import RequestError, ScheduleError, choices

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Scheduler:
    """A diffusers scheduler class.

    defaults : its options and their defaults, in diffusers 0.42.1.
    only : for options that are not fully supported, the values that are. What merely refines an
        unsupported value (``flow_shift``, ``sample_max_value``) has no effect and is not listed.
    aliases : values that the class itself replaces, option by option.
    """

    defaults: Options
    only: Mapping[str, tuple[Any, ...]]
    aliases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


_TRAINING: Final[dict[str, Any]] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
}
_PREDICTIONS: Final = ("epsilon", "v_prediction", "sample")
_SPACINGS: Final = ("leading", "trailing", "linspace")
_FINAL_SIGMAS: Final = ("zero", "sigma_min")
_THRESHOLDING: Final[dict[str, Any]] = {
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
}
_ANY: Final[dict[str, tuple[Any, ...]]] = {
    "prediction_type": _PREDICTIONS,
    "timestep_spacing": _SPACINGS,
}

SCHEDULERS: Final[Mapping[str, Scheduler]] = {
    "DDIMScheduler": Scheduler(
        defaults=_TRAINING
        | _THRESHOLDING
        | {
            "timestep_spacing": "leading",
            "set_alpha_to_one": True,
            "clip_sample": True,
            "clip_sample_range": 1.0,
            "rescale_betas_zero_snr": False,
        },
        only=_ANY | {"thresholding": (False,)},
    ),
    "PNDMScheduler": Scheduler(
        defaults=_TRAINING
        | {
            "timestep_spacing": "leading",
            "set_alpha_to_one": False,
            "skip_prk_steps": False,
        },
        only=_ANY | {"prediction_type": ("epsilon", "v_prediction"), "skip_prk_steps": (True,)},
    ),
    "EulerDiscreteScheduler": Scheduler(
        defaults=_TRAINING
        | {
            "timestep_spacing": "linspace",
            "interpolation_type": "linear",
            "use_karras_sigmas": False,
            "use_exponential_sigmas": False,
            "use_beta_sigmas": False,
            "sigma_min": None,
            "sigma_max": None,
            "timestep_type": "discrete",
            "rescale_betas_zero_snr": False,
            "final_sigmas_type": "zero",
        },
        only=_ANY
        | {
            "interpolation_type": ("linear",),
            "use_exponential_sigmas": (False, None),
            "use_beta_sigmas": (False, None),
            "timestep_type": ("discrete",),
            "final_sigmas_type": _FINAL_SIGMAS,
        },
    ),
    "EulerAncestralDiscreteScheduler": Scheduler(
        defaults=_TRAINING | {"timestep_spacing": "linspace", "rescale_betas_zero_snr": False},
        only=_ANY,
    ),
    "DPMSolverMultistepScheduler": Scheduler(
        defaults=_TRAINING
        | _THRESHOLDING
        | {
            "timestep_spacing": "linspace",
            "solver_order": 2,
            "algorithm_type": "dpmsolver++",
            "solver_type": "midpoint",
            "lower_order_final": True,
            "euler_at_final": False,
            "use_karras_sigmas": False,
            "use_exponential_sigmas": False,
            "use_beta_sigmas": False,
            "use_lu_lambdas": False,
            "use_flow_sigmas": False,
            "flow_shift": 1.0,
            # Not in the class's signature; yet diffusers' karras spacing finds them where the
            # configuration of another class has them.
            "sigma_min": None,
            "sigma_max": None,
            "final_sigmas_type": "zero",
            "lambda_min_clipped": -float("inf"),
            "variance_type": None,
            "rescale_betas_zero_snr": False,
            "use_dynamic_shifting": False,
            "time_shift_type": "exponential",
        },
        only=_ANY
        | {
            "thresholding": (False,),
            "solver_order": (2,),
            "algorithm_type": ("dpmsolver++",),
            "solver_type": ("midpoint",),
            "use_exponential_sigmas": (False, None),
            "use_beta_sigmas": (False, None),
            "use_lu_lambdas": (False, None),
            "use_flow_sigmas": (False, None),
            "final_sigmas_type": _FINAL_SIGMAS,
            "variance_type": (None,),
            "use_dynamic_shifting": (False,),
        },
        aliases={
            "algorithm_type": {"deis": "dpmsolver++"},
            "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
        },
    ),
}

# The scheduler class that each sampler's options belong to. The first sampler of a class is the
# one that a configuration of that class means.
CLASS_OF: Final[dict[str, str]] = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}

# Classes of other samplers whose configurations describe the same kind of training, so that a
# sampler named in the request can take them over.
_RELATED: Final = frozenset(
    {
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverSDEScheduler",
        "DPMSolverSinglestepScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LCMScheduler",
        "LMSDiscreteScheduler",
        "TCDScheduler",
        "UniPCMultistepScheduler",
    }
)


def choose_sampler(config: Options, sampler: str | None) -> str:
    """Name the sampler: the one asked for, else the one of the configuration's class.

    Raises
    ------
    RequestError
        If there is no sampler of that name.
    ScheduleError
        If the configuration's class is missing, or not one that the sampler can take over.
    """
    if sampler is not None and sampler not in CLASS_OF:
        raise RequestError(f"sampler: got {sampler!r}; {choices(str(sampler), CLASS_OF)}")
    name = config.get("_class_name")
    own = {scheduler: key for key, scheduler in reversed(CLASS_OF.items())}
    if not isinstance(name, str) or name not in own.keys() | _RELATED:
        raise ScheduleError(
            f"_class_name: got {name!r}, expected one of {', '.join(sorted(own))}; "
            "pass diffusers' scheduler_config.json of a discrete-time model"
        )
    if sampler is None and name not in own:
        raise ScheduleError(
            f"_class_name: no sampler does what diffusers' {name} does; "
            f"name another one in the request: {', '.join(CLASS_OF)}"
        )
    return sampler or own[name]


def read_options(config: Options, sampler: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read a sampler's options from a configuration as diffusers' ``from_config`` does.

    Returns
    -------
    tuple of (dict, tuple of str)
        Every option of the sampler's class, and the names in the configuration that it lacks.

    Raises
    ------
    ScheduleError
        For an option whose value is not supported.
    """
    class_name = CLASS_OF[sampler]
    scheduler = SCHEDULERS[class_name]
    # diffusers marks values that were only defaults of another class; they do not count.
    unset = {"_use_default_values", *config.get("_use_default_values", ())}
    given = {key: value for key, value in config.items() if key not in unset}
    options = {key: given.get(key, default) for key, default in scheduler.defaults.items()}
    for key, replaced in scheduler.aliases.items():
        options[key] = next(
            (new for old, new in replaced.items() if old == options[key]), options[key]
        )
    for key, allowed in scheduler.only.items():
        if options[key] not in allowed:
            raise ScheduleError(
                f"{key}: got {options[key]!r}, but sampler {sampler!r} ({class_name}) supports "
                f"{' or '.join(map(repr, allowed))} only; choose another sampler, or set {key} so"
            )
    _check_counts(options)
    dropped = sorted(key for key in given if key not in options and not key.startswith("_"))
    return options, tuple(dropped)


def _check_counts(options: Options) -> None:
    """Check the numbers that the tables are built from."""
    for key, least in (("num_train_timesteps", 1), ("steps_offset", 0)):
        value = options[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ScheduleError(
                f"{key}: got {value!r}, expected a whole number of at least {least}; "
                "repair scheduler_config.json"
            )
    for key in ("beta_start", "beta_end"):
        value = options[key]
        if not isinstance(value, int | float) or not 0 < value < 1:
            raise ScheduleError(
                f"{key}: got {value!r}, expected a number between 0 and 1; "
                "repair scheduler_config.json"
            )
