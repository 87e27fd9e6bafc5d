"""Scheduler configurations: which options a sampler reads from diffusers' JSON.

A sampler stands for one diffusers class, perhaps with some options fixed. Its options come from the
configuration as ``Class.from_config(config)`` takes them: those that the class knows, the class's
own defaults for those that are absent; the rest are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from edgediffusion.errors import RequestError, ScheduleError, choices
from edgediffusion.scheduler_classes import SCHEDULERS, Options
from edgediffusion.spacing import SPACED_SIGMAS

MULTISTEP: Final = "DPMSolverMultistepScheduler"
SINGLESTEP: Final = "DPMSolverSinglestepScheduler"
EDM_MULTISTEP: Final = "EDMDPMSolverMultistepScheduler"


class Name(NamedTuple):
    """What a sampler's name stands for: diffusers' class, and options that the name fixes."""

    scheduler: str
    fixed: Options = MappingProxyType({})


def _dpm(scheduler: str, algorithm: str, order: int) -> Name:
    fixed = {"algorithm_type": algorithm, "solver_order": order, "solver_type": "midpoint"}
    return Name(scheduler, fixed)


# Of the names of one class, a configuration means the first whose fixed options it has.
NAMES: Final[Mapping[str, Name]] = {
    "ddim": Name("DDIMScheduler"),
    "ddpm": Name("DDPMScheduler"),
    "pndm": Name("PNDMScheduler"),
    "plms": Name("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": Name("LMSDiscreteScheduler"),
    "euler": Name("EulerDiscreteScheduler"),
    "euler_ancestral": Name("EulerAncestralDiscreteScheduler"),
    "heun": Name("HeunDiscreteScheduler"),
    "dpm_2": Name("KDPM2DiscreteScheduler"),
    "dpm_2_ancestral": Name("KDPM2AncestralDiscreteScheduler"),
    "dpmpp_2m": _dpm(MULTISTEP, "dpmsolver++", 2),
    "dpmpp_2m_sde": _dpm(MULTISTEP, "sde-dpmsolver++", 2),
    "dpmpp_3m": _dpm(MULTISTEP, "dpmsolver++", 3),
    "dpmpp_3m_sde": _dpm(MULTISTEP, "sde-dpmsolver++", 3),
    "dpm_multistep": Name(MULTISTEP),
    "dpmpp_2s": _dpm(SINGLESTEP, "dpmsolver++", 2),
    "dpmpp_3s": _dpm(SINGLESTEP, "dpmsolver++", 3),
    "dpm_singlestep": Name(SINGLESTEP),
    "dpmpp_sde": Name("DPMSolverSDEScheduler"),
    "unipc": Name("UniPCMultistepScheduler"),
    "deis": Name("DEISMultistepScheduler"),
    "sa_solver": Name("SASolverScheduler"),
    "lcm": Name("LCMScheduler"),
    "tcd": Name("TCDScheduler"),
    "ipndm": Name("IPNDMScheduler"),
    "edm_euler": Name("EDMEulerScheduler"),
    "edm_dpmpp_2m": _dpm(EDM_MULTISTEP, "dpmsolver++", 2),
    "edm_dpmpp_2m_sde": _dpm(EDM_MULTISTEP, "sde-dpmsolver++", 2),
    "edm_dpm_multistep": Name(EDM_MULTISTEP),
    "flow_euler": Name("FlowMatchEulerDiscreteScheduler"),
    "flow_heun": Name("FlowMatchHeunDiscreteScheduler"),
}

# Classes whose models are trained on other noise than the rest; a sampler of one kind says nothing
# sensible about a model of another.
_KINDS: Final[Mapping[str, str]] = {
    "IPNDMScheduler": "sine",
    "EDMEulerScheduler": "EDM",
    EDM_MULTISTEP: "EDM",
    "FlowMatchEulerDiscreteScheduler": "flow",
    "FlowMatchHeunDiscreteScheduler": "flow",
}


class Reading(NamedTuple):
    """A configuration as a sampler reads it.

    sampler : the sampler's name.
    scheduler : diffusers' class.
    options : every option and argument of that class.
    dropped : names in the configuration that the class lacks.
    """

    sampler: str
    scheduler: str
    options: dict[str, Any]
    dropped: tuple[str, ...]


def read_config(config: Options, sampler: str | None, given: Options) -> Reading:
    """Read a configuration for a sampler, with the request's own options on top.

    Parameters
    ----------
    config : mapping
        diffusers' ``scheduler_config.json``.
    sampler : str, optional
        A name in `NAMES`; None for the configuration's own class.
    given : mapping
        Options that override the configuration, and arguments of the class's ``step``.

    Raises
    ------
    RequestError
        For an unknown sampler, or given options that it lacks.
    ScheduleError
        For a configuration that is broken or of another kind, or an option whose value is not
        supported.
    """
    name, fixed = _choose(config, sampler, given)
    known = SCHEDULERS[name]
    all_of_them = {**known.defaults, **known.arguments}
    for key in given:
        if key not in all_of_them:
            raise RequestError(
                f"{key}: sampler {sampler or name!r} ({name}) has no such option; "
                f"{choices(key, all_of_them)}"
            )
        if key in fixed and given[key] != fixed[key]:
            raise RequestError(
                f"{key}: got {given[key]!r}, but sampler {sampler!r} means {fixed[key]!r}; "
                "name another sampler"
            )
    # diffusers marks values that were only defaults of another class; they do not count.
    unset = {"_use_default_values", *config.get("_use_default_values", ())}
    written = {key: value for key, value in config.items() if key not in unset}
    kept = {key: value for key, value in written.items() if key in known.defaults}
    options = {**all_of_them, **kept, **fixed, **given}
    _replace_aliases(options, known.aliases)
    if sampler is None:
        sampler = next(
            key
            for key, (scheduler, values) in NAMES.items()
            if scheduler == name and values.items() <= options.items()
        )
    _check_choices(options, known.only, f"sampler {sampler!r} ({name})")
    _check_numbers(options)
    _check_together(options)
    dropped = sorted(key for key in written if key not in known.defaults and key[0] != "_")
    used = {key: value for key, value in options.items() if key not in known.unused}
    return Reading(sampler, name, used, tuple(dropped))


def _choose(config: Options, sampler: str | None, given: Options) -> Name:
    """Find the class: of the sampler asked for, else of the configuration."""
    if sampler is not None and sampler not in NAMES:
        raise RequestError(f"sampler: got {sampler!r}; {choices(str(sampler), NAMES)}")
    own = config.get("_class_name")
    if not isinstance(own, str) or own not in SCHEDULERS:
        raise ScheduleError(
            f"_class_name: got {own!r}, expected one of {', '.join(sorted(SCHEDULERS))}; "
            "pass diffusers' scheduler_config.json"
        )
    if sampler is None:
        return Name(own)
    name = NAMES[sampler]
    kind, wanted = (_KINDS.get(scheduler, "beta") for scheduler in (own, name.scheduler))
    flowing = kind == "flow" and given.get("use_flow_sigmas")
    if kind != wanted and not flowing:
        hint = "; or add use_flow_sigmas=True, prediction_type='flow_prediction'"
        raise ScheduleError(
            f"_class_name: got {own}, whose models are trained on {kind} noise; sampler "
            f"{sampler!r} is for {wanted} noise, name another one"
            + (hint if kind == "flow" and "use_flow_sigmas" in _defaults(name) else "")
        )
    return name


def _defaults(name: Name) -> Options:
    return SCHEDULERS[name.scheduler].defaults


def _replace_aliases(options: dict[str, Any], aliases: Mapping[str, Mapping[str, str]]) -> None:
    for key, replaced in aliases.items():
        if isinstance(options[key], str):
            options[key] = replaced.get(options[key], options[key])


def _check_choices(options: Options, only: Mapping[str, tuple[Any, ...]], who: str) -> None:
    for key, allowed in only.items():
        if key in options and options[key] not in allowed:
            raise ScheduleError(
                f"{key}: got {options[key]!r}, but {who} supports "
                f"{' or '.join(map(repr, allowed))} only; choose another sampler, or set {key} so"
            )


# Options that are numbers: the least and the greatest that make sense.
_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "beta_start": (0, 1),
    "beta_end": (0, 1),
    "clip_sample_range": (0, math.inf),
    "dynamic_thresholding_ratio": (0, 1),
    "sample_max_value": (0, math.inf),
    "sigma_min": (0, math.inf),
    "sigma_max": (0, math.inf),
    "sigma_data": (0, math.inf),
    "rho": (0, math.inf),
    "flow_shift": (0, math.inf),
    "shift": (0, math.inf),
    "shift_terminal": (0, 1),
    "timestep_scaling": (0, math.inf),
    "eta": (0, 1),
    "mu": (-math.inf, math.inf),
}


def _check_numbers(options: Options) -> None:
    """Check the numbers that the tables are built from."""
    counts = {"num_train_timesteps": 1, "steps_offset": 0, "original_inference_steps": 1}
    for key, least in counts.items():
        value = options.get(key, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ScheduleError(
                f"{key}: got {value!r}, expected a whole number of at least {least}; "
                "repair scheduler_config.json"
            )
    for key, (low, high) in _RANGES.items():
        value = options.get(key)
        if value is None and key not in ("beta_start", "beta_end"):
            continue
        open_at_zero = low == 0 and key != "eta"
        good = isinstance(value, int | float) and low <= value <= high
        if key in options and (not good or (open_at_zero and value == 0)):
            raise ScheduleError(
                f"{key}: got {value!r}, expected a number between {low:g} and {high:g}; "
                "repair scheduler_config.json"
            )


def _check_together(options: Options) -> None:
    """Refuse options that exclude each other, as diffusers' constructors do."""
    chosen = [flag for flag in SPACED_SIGMAS if options.get(flag)]
    if len(chosen) > 1:
        raise ScheduleError(f"{' and '.join(chosen)} exclude each other; set one of them")
    algorithm = options.get("algorithm_type")
    if algorithm in ("dpmsolver", "sde-dpmsolver") and options["final_sigmas_type"] == "zero":
        raise ScheduleError(
            f"final_sigmas_type: got 'zero', but algorithm_type {algorithm!r} cannot end without "
            "noise; set final_sigmas_type to 'sigma_min'"
        )
    if algorithm == "sde-dpmsolver" and options["solver_order"] == 3:
        raise ScheduleError(
            "solver_order: got 3, but algorithm_type 'sde-dpmsolver' has orders 1 and 2; "
            "use 'sde-dpmsolver++'"
        )
    if options.get("use_dynamic_shifting") and options.get("mu") is None:
        raise ScheduleError(
            "use_dynamic_shifting: the shift depends on the size of the picture; pass mu="
        )
    flowing = options.get("use_flow_sigmas", True)
    if options.get("shift_terminal") and not flowing:
        raise ScheduleError("shift_terminal: works with use_flow_sigmas only; set that too")
    if options.get("prediction_type") == "flow_prediction" and not flowing:
        raise ScheduleError(
            "prediction_type: got 'flow_prediction' without use_flow_sigmas; set that too"
        )
