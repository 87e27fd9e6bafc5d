"""Schedules: the tables of diffusers' schedulers, and what is refused."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import astuple
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgediffusion.betas import BETAS, alphas_cumprod
from edgediffusion.errors import RequestError, ScheduleError
from edgediffusion.options import NAMES, read_config
from edgediffusion.samplers import SAMPLERS, SOLVERS
from edgediffusion.schedule import EVEN, SPACINGS, Schedule, schedule_from_config
from edgediffusion.scheduler_classes import SCHEDULERS
from edgediffusion.tables import TABLES
from tests.golden.make_sampler_golden import STABLE_DIFFUSION, scheduler_for

needs_diffusers = pytest.mark.skipif(
    find_spec("diffusers") is None, reason="compares against diffusers"
)


def config(sampler: str, **more: Any) -> dict[str, Any]:
    """Stable Diffusion's training, under the scheduler class of a sampler, and what it fixes."""
    scheduler, fixed = NAMES[sampler]
    return STABLE_DIFFUSION | {"_class_name": scheduler} | dict(fixed) | more


def trained_on_betas(sampler: str) -> bool:
    """Whether a sampler is for models like Stable Diffusion."""
    return "beta_schedule" in SCHEDULERS[NAMES[sampler].scheduler].defaults


ALL = sorted(NAMES)
LATENT = [name for name in ALL if trained_on_betas(name)]


FIVE = ["ddim", "dpmpp_2m", "euler", "euler_ancestral", "pndm"]
TWICE = {
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler",
}


def few(sampler: str) -> bool:
    """Whether a sampler takes at most 50 steps."""
    return "original_inference_steps" in SCHEDULERS[NAMES[sampler].scheduler].defaults


def diffusers_scheduler(asked: dict[str, Any]) -> Any:
    """diffusers' scheduler of a configuration."""
    with warnings.catch_warnings():  # its own use of torch and NumPy
        warnings.simplefilter("ignore")
        import diffusers

        return getattr(diffusers, asked["_class_name"]).from_config(asked)


def numbers(schedule: Schedule) -> list[float]:
    """Every number in the table."""
    flat = [schedule.init_noise_scale]
    for row in schedule.rows:
        timestep, level, end, start, down, fresh, span, input_scale, _ = astuple(row)
        flat += [timestep, *level, *end, *start, down, fresh, *(span or ()), input_scale]
    return flat


def ratios(schedule: Schedule) -> list[float]:
    """Noise to signal at each call, infinite for pure noise."""
    return [row.sigma / row.alpha if row.alpha else math.inf for row in schedule.rows]


def test_every_sampler_has_options_a_table_and_a_function() -> None:
    assert NAMES.keys() == SAMPLERS.keys()
    classes = {name.scheduler for name in NAMES.values()}
    assert classes == TABLES.keys() == SCHEDULERS.keys() == SOLVERS.keys()


def test_stable_diffusion_on_euler() -> None:
    schedule = schedule_from_config(config("euler"), steps=20)
    assert schedule.sampler == "euler"
    assert schedule.spacing == "linspace"
    assert schedule.init_noise_scale == pytest.approx(14.6146, abs=1e-4)
    assert [row.timestep for row in schedule.rows[:2]] == [999.0, pytest.approx(946.4211)]
    assert schedule.rows[-1].end == (1.0, 0.0)
    assert schedule.dropped == ("clip_sample", "set_alpha_to_one", "skip_prk_steps")


def test_none_means_the_sampler_of_the_class() -> None:
    for sampler in ALL:
        means = {"plms": "pndm", "dpm_multistep": "dpmpp_2m", "dpm_singlestep": "dpmpp_2s"}
        means["edm_dpm_multistep"] = "edm_dpmpp_2m"
        schedule = schedule_from_config(config(sampler), steps=6)
        assert schedule.sampler == means.get(sampler, sampler)
    other = schedule_from_config(config("dpmpp_2m", solver_type="heun"), steps=4)
    assert other.sampler == "dpm_multistep"


def test_pndm_visits_the_second_timestep_twice() -> None:
    schedule = schedule_from_config(config("pndm"), steps=4)
    assert [row.timestep for row in schedule.rows] == [751, 501, 501, 251, 1]
    assert len(schedule_from_config(config("pndm"), steps=1).rows) == 1


def test_pndm_by_runge_kutta_makes_four_calls_in_each_of_three_steps() -> None:
    schedule = schedule_from_config(config("pndm", skip_prk_steps=False), steps=5)
    timesteps = [801, 701, 701, 601, 601, 501, 501, 401, 401, 301, 301, 201, 201, 1]
    assert [row.timestep for row in schedule.rows] == timesteps
    plms = schedule_from_config(config("pndm", skip_prk_steps=False), 5, "plms")
    assert [row.timestep for row in plms.rows] == [801, 601, 601, 401, 201, 1]


def test_the_configuration_is_not_changed() -> None:
    given_config = config("euler")
    schedule_from_config(given_config, steps=4, spacing="karras")
    assert given_config == config("euler")


@settings(deadline=None)
@given(
    sampler=st.sampled_from(LATENT),
    spacing=st.sampled_from(SPACINGS),
    beta_schedule=st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
    zero_snr=st.booleans(),
    steps=st.integers(1, 999),
)
def test_tables_are_finite_python_floats_and_fall(
    sampler: str, spacing: str, beta_schedule: str, zero_snr: bool, steps: int
) -> None:
    asked = config(
        sampler,
        beta_schedule=beta_schedule,
        rescale_betas_zero_snr=zero_snr,
        prediction_type="v_prediction",
    )
    try:
        schedule = schedule_from_config(asked, steps=steps, spacing=spacing)
    except RequestError:
        # No such spacing, or too few levels.
        even = "timestep_spacing" in SCHEDULERS[NAMES[sampler].scheduler].defaults
        assert spacing not in EVEN or not even or steps > 400 or few(sampler)
        return
    assert all(type(number) is float and math.isfinite(number) for number in numbers(schedule))
    twice = schedule.scheduler in TWICE
    assert len(schedule.rows) in (steps, steps + 1, 2 * steps - 1 if twice else steps)
    if sampler != "dpm_2_ancestral":  # which looks further down than it goes
        assert all(high >= low * (1 - 1e-9) for high, low in pairwise(ratios(schedule)))
    exploding = schedule.rows[0].input_scale != 1
    rounded = schedule.scheduler in ("LCMScheduler", "TCDScheduler")  # sigma as float32 has it
    for row in schedule.rows:
        norm = row.alpha if exploding else row.alpha**2 + row.sigma**2
        assert norm == pytest.approx(1, abs=2.0**-24 if rounded else 1e-12)


def test_zero_terminal_snr_is_pure_noise_for_ddim() -> None:
    asked = config("ddim", rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert schedule_from_config(asked, steps=5, spacing="trailing").rows[0].level == (0.0, 1.0)


def test_trailing_keeps_its_number_of_steps() -> None:
    # np.arange(1000, 0, -1000 / 61) has 62 elements; diffusers then ends at timestep -1.
    rows = schedule_from_config(config("ddim"), steps=61, spacing="trailing").rows
    assert len(rows) == 61
    assert rows[-1].timestep == 15


def test_a_spacing_in_the_request_replaces_karras() -> None:
    asked = config("euler", use_karras_sigmas=True)
    assert schedule_from_config(asked, steps=5).spacing == "karras"
    assert schedule_from_config(asked, steps=5, spacing="trailing").spacing == "trailing"


def test_default_values_of_another_class_do_not_count() -> None:
    asked = config("euler", final_sigmas_type="sigma_min")
    marked = asked | {"_use_default_values": ["final_sigmas_type"]}
    assert schedule_from_config(asked, steps=4).rows[-1].end.sigma > 0
    assert schedule_from_config(marked, steps=4).rows[-1].end.sigma == 0


def test_listed_betas() -> None:
    betas = np.linspace(0.001, 0.02, 50).tolist()
    asked = config("ddim", trained_betas=betas, num_train_timesteps=50, steps_offset=0)
    last = schedule_from_config(asked, steps=50, spacing="trailing").rows[-1]
    assert last.alpha == pytest.approx(math.sqrt(0.999))


def test_values_that_diffusers_replaces_are_taken() -> None:
    asked = config("dpmpp_2m", algorithm_type="deis", solver_type="bh2")
    options = read_config(asked, None, {}).options
    assert (options["algorithm_type"], options["solver_type"]) == ("dpmsolver++", "midpoint")


@pytest.mark.parametrize("infinity", [-math.inf, "-Infinity", None])
def test_lambda_min_clipped_as_json_may_hold_it(infinity: Any) -> None:
    # diffusers saves -Infinity, which is not JSON: a reader may hand on a string or null.
    asked = config("dpmpp_2m", lambda_min_clipped=infinity)
    assert schedule_from_config(asked, steps=5) == schedule_from_config(config("dpmpp_2m"), steps=5)


@needs_diffusers
@pytest.mark.parametrize("beta_schedule", sorted(BETAS))
@pytest.mark.parametrize("ends", [(0.0001, 0.02), (0.00085, 0.012)])
@pytest.mark.parametrize("train_steps", [1000, 999, 10, 1])
def test_alpha_products_equal_diffusers_bit_for_bit(
    beta_schedule: str, ends: tuple[float, float], train_steps: int
) -> None:
    sampler = {"exp": "heun"}.get(beta_schedule, "ddpm")
    asked = config(sampler, beta_schedule=beta_schedule, num_train_timesteps=train_steps)
    asked |= {"beta_start": ends[0], "beta_end": ends[1], "steps_offset": 0}
    ours = alphas_cumprod(read_config(asked, None, {}).options).astype(np.float32)
    expected = diffusers_scheduler(asked).alphas_cumprod.numpy()
    if beta_schedule == "sigmoid":  # PyTorch's logistic function is off in the last bit at times
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=0)
    else:
        np.testing.assert_array_equal(ours, expected)


@needs_diffusers
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_zero_snr_alpha_products_are_near_diffusers(beta_schedule: str) -> None:
    # PyTorch takes float32 square roots with MKL, which may be off in the last bit.
    asked = config("ddim", beta_schedule=beta_schedule, rescale_betas_zero_snr=True)
    ours = alphas_cumprod(read_config(asked, None, {}).options)
    expected = diffusers_scheduler(asked).alphas_cumprod.numpy()
    assert ours[-1] == expected[-1] == 0
    np.testing.assert_allclose(ours[:-1], expected[:-1], rtol=5e-6, atol=0)


@needs_diffusers
@pytest.mark.parametrize("sampler", FIVE)
@pytest.mark.parametrize("source", [*FIVE, "unipc"])
def test_another_sampler_reads_the_options_as_from_config_does(source: str, sampler: str) -> None:
    asked = STABLE_DIFFUSION | {
        "_class_name": NAMES[source].scheduler,
        "timestep_spacing": "trailing",
        "final_sigmas_type": "sigma_min",
        "lower_order_final": False,
        "solver_type": "bh2" if source == "unipc" else "midpoint",
        "use_karras_sigmas": sampler == "dpmpp_2m",
        "sigma_max": 9.0,  # unknown to dpmpp_2m's class, which finds it all the same
        "nonsense": 1,
    }
    scheduler = scheduler_for(sampler, asked, num_inference_steps=16)
    schedule = schedule_from_config(asked, steps=16, sampler=sampler)
    timesteps = [row.timestep for row in schedule.rows]
    np.testing.assert_allclose(timesteps, scheduler.timesteps.numpy(), rtol=1e-6)
    assert float(scheduler.init_noise_sigma) == pytest.approx(schedule.init_noise_scale)
    assert set(schedule.dropped) == {
        key
        for key in asked
        if key not in type(scheduler).__init__.__wrapped__.__code__.co_varnames
        and not key.startswith("_")
        and not (key == "sigma_max" and sampler in ("dpmpp_2m", "euler"))
    }
    if hasattr(scheduler, "sigmas"):
        sigmas = [*ratios(schedule), schedule.rows[-1].end.sigma / schedule.rows[-1].end.alpha]
        np.testing.assert_allclose(sigmas, scheduler.sigmas.numpy(), rtol=1e-6)


@needs_diffusers
def test_listed_timesteps_and_sigmas_equal_diffusers() -> None:
    asked: list[tuple[str, dict[str, Any]]] = [
        ("euler", {"timesteps": [999, 700, 300.5, 10]}),
        ("euler", {"sigmas": [12.0, 5.0, 1.0, 0.3, 0.0]}),
        ("dpmpp_2m", {"timesteps": [999, 700, 300, 10]}),
    ]
    for sampler, listed in asked:
        scheduler = scheduler_for(sampler, config(sampler), **listed)
        schedule = schedule_from_config(config(sampler), **listed)
        timesteps = [row.timestep for row in schedule.rows]
        np.testing.assert_allclose(timesteps, scheduler.timesteps.numpy(), rtol=1e-6)
        np.testing.assert_allclose(ratios(schedule), scheduler.sigmas.numpy()[:-1], rtol=1e-6)
        assert schedule.spacing == next(iter(listed))


def test_listed_timesteps_lead_each_to_the_next() -> None:
    rows = schedule_from_config(config("ddim"), timesteps=[999, 500, 20]).rows
    assert [row.timestep for row in rows] == [999, 500, 20]
    assert [row.end for row in rows[:-1]] == [row.level for row in rows[1:]]


@pytest.mark.parametrize(
    ("name", "hint"), [("eular", "did you mean euler"), ("xyz", "known: ddim, ddpm")]
)
def test_unknown_sampler(name: str, hint: str) -> None:
    with pytest.raises(RequestError, match=f"sampler: got '{name}'; {hint}"):
        schedule_from_config(config("euler"), steps=4, sampler=name)


@pytest.mark.parametrize("name", [None, 3, "RePaintScheduler"])
def test_unknown_class(name: Any) -> None:
    with pytest.raises(ScheduleError, match=r"_class_name: got .* expected one of DDIM"):
        schedule_from_config({"_class_name": name}, steps=4)


@pytest.mark.parametrize(
    ("source", "sampler", "hint"),
    [
        ("flow_euler", "dpmpp_2m", "trained on flow noise; .* or add use_flow_sigmas=True"),
        ("flow_euler", "ddim", "trained on flow noise; sampler 'ddim' is for beta noise, name"),
        ("edm_euler", "euler", "EDMEulerScheduler, whose models are trained on EDM noise"),
        ("ddim", "flow_heun", "trained on beta noise; sampler 'flow_heun' is for flow noise"),
    ],
)
def test_a_sampler_for_another_kind_of_model(source: str, sampler: str, hint: str) -> None:
    with pytest.raises(ScheduleError, match=f"_class_name: got .*{hint}"):
        schedule_from_config(config(source), steps=4, sampler=sampler)


def test_a_flow_model_on_a_solver_that_can() -> None:
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    schedule = schedule_from_config(config("flow_euler"), 4, "dpmpp_2m", **flow)
    assert all(row.alpha + row.sigma == pytest.approx(1) for row in schedule.rows)


@pytest.mark.parametrize(
    ("sampler", "option", "value"),
    [
        ("ddim", "prediction_type", "flow_prediction"),
        ("ddim", "timestep_spacing", "even"),
        ("ddim", "beta_schedule", "sigmoid"),
        ("ddpm", "variance_type", "fixed_large_log"),
        ("pndm", "prediction_type", "sample"),
        ("euler", "interpolation_type", "cubic"),
        ("euler", "timestep_type", "odd"),
        ("euler", "final_sigmas_type", "one"),
        ("heun", "beta_schedule", "sigmoid"),
        ("dpm_multistep", "solver_order", 4),
        ("dpm_multistep", "algorithm_type", "dpmsolver+++"),
        ("unipc", "solver_p", {}),
        ("sa_solver", "tau_func", "constant"),
        ("edm_euler", "sigma_schedule", "linear"),
        ("flow_euler", "time_shift_type", "cubic"),
    ],
)
def test_option_that_is_not_supported(sampler: str, option: str, value: Any) -> None:
    asked = STABLE_DIFFUSION | {"_class_name": NAMES[sampler].scheduler, option: value}
    if not trained_on_betas(sampler):
        asked.pop("prediction_type", None)
    with pytest.raises(ScheduleError, match=f"{option}: got {re.escape(repr(value))}, but sampler"):
        schedule_from_config(asked, steps=4)


def test_options_of_the_request_come_last() -> None:
    asked = config("ddim", timestep_spacing="leading")
    schedule = schedule_from_config(asked, steps=5, timestep_spacing="trailing", eta=1.0)
    assert schedule.rows[0].timestep == 999
    assert schedule.stochastic
    assert schedule.options["eta"] == 1.0


def test_option_that_the_sampler_lacks() -> None:
    with pytest.raises(RequestError, match=r"etta: sampler 'ddim' .* has no such option; did you"):
        schedule_from_config(config("euler"), steps=5, sampler="ddim", etta=1.0)


def test_option_that_the_name_fixes() -> None:
    with pytest.raises(RequestError, match="solver_order: got 3, but sampler 'dpmpp_2m' means 2"):
        schedule_from_config(config("ddim"), steps=5, sampler="dpmpp_2m", solver_order=3)


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        ("euler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "exclude each other"),
        ("dpm_multistep", {"algorithm_type": "dpmsolver"}, "cannot end without noise"),
        (
            "dpm_multistep",
            {
                "algorithm_type": "sde-dpmsolver",
                "final_sigmas_type": "sigma_min",
                "solver_order": 3,
            },
            "has orders 1 and 2",
        ),
        ("flow_euler", {"use_dynamic_shifting": True}, "use_dynamic_shifting: .* pass mu="),
        ("unipc", {"shift_terminal": 0.1}, "shift_terminal: works with use_flow_sigmas only"),
        ("unipc", {"prediction_type": "flow_prediction"}, "'flow_prediction' without use_flow_sig"),
        ("ddim", {"eta": 1.5}, "eta: got 1.5, expected a number between 0 and 1"),
        ("lcm", {"original_inference_steps": 2000}, "more than num_train_timesteps 1000"),
    ],
)
def test_options_that_do_not_go_together(
    sampler: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ScheduleError, match=message):
        schedule_from_config(config(sampler), steps=4, **options)


def test_spacing_align_your_steps() -> None:
    ten = schedule_from_config(config("euler"), steps=10, spacing="ays")
    expected = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    assert [row.timestep for row in ten.rows] == expected
    assert ten.spacing == "ays"
    more = [row.timestep for row in schedule_from_config(config("ddim"), 20, spacing="ays").rows]
    assert (len(more), more[0], more[-1]) == (20, 999, 24)
    with pytest.raises(RequestError, match="900 steps of ays would visit a timestep twice"):
        schedule_from_config(config("ddim"), 900, spacing="ays")
    with pytest.raises(RequestError, match="ays is for models trained on betas"):
        schedule_from_config(config("flow_euler"), 10, spacing="ays")


def test_strength_keeps_the_clean_end() -> None:
    whole = schedule_from_config(config("euler"), steps=10).rows
    assert schedule_from_config(config("euler"), steps=10, strength=0.35).rows == whole[7:]
    heun = schedule_from_config(config("heun"), steps=10).rows
    assert schedule_from_config(config("heun"), steps=10, strength=0.35).rows == heun[14:]
    assert schedule_from_config(config("euler"), steps=10, strength=0.35).left_out == whole[:7]


def test_pndm_begun_in_the_middle_makes_its_first_step_twice_as_diffusers_does() -> None:
    whole = schedule_from_config(config("pndm"), steps=10).rows
    assert [row.timestep for row in whole[:4]] == [901, 801, 801, 701]
    cut = schedule_from_config(config("pndm"), steps=10, strength=0.35).rows
    assert (
        [row.timestep for row in cut] == [row.timestep for row in whole[7:]] == [301, 201, 101, 1]
    )
    assert cut[1].start == cut[0].level  # the first step again
    assert cut[2:] == whole[9:]  # told a timestep that is less noisy than the latents are


def test_pndm_by_runge_kutta_does_not_begin_in_the_middle() -> None:
    with pytest.raises(RequestError, match="without skip_prk_steps cannot begin in the middle"):
        schedule_from_config(config("pndm", skip_prk_steps=False), steps=10, strength=0.5)


def test_sa_solver_lays_a_picture_under_the_noise_of_the_whole_timestep() -> None:
    spaced = schedule_from_config(config("sa_solver"), 10, spacing="karras", strength=0.5)
    even = schedule_from_config(config("sa_solver"), 10, strength=0.5)
    assert spaced.first != spaced.rows[0].level
    assert spaced.first.sigma == pytest.approx(spaced.rows[0].level.sigma, rel=0.01)
    assert even.first == pytest.approx(even.rows[0].level, rel=1e-6)


@pytest.mark.parametrize("strength", [0, -1, 1.1, math.nan, "half"])
def test_strength_that_makes_no_sense(strength: Any) -> None:
    with pytest.raises(RequestError, match=r"strength: got .*, expected a number above 0"):
        schedule_from_config(config("euler"), steps=10, strength=strength)


def test_strength_that_leaves_no_step() -> None:
    with pytest.raises(RequestError, match=r"strength: 0.05 of 10 steps leaves none; use at least"):
        schedule_from_config(config("euler"), steps=10, strength=0.05)


def test_consistency_models_know_few_steps() -> None:
    with pytest.raises(RequestError, match="steps: got 51, but the model was distilled on 50"):
        schedule_from_config(config("lcm"), steps=51)


def test_pndm_by_runge_kutta_needs_four_steps() -> None:
    with pytest.raises(RequestError, match="without skip_prk_steps needs at least 4, got 3"):
        schedule_from_config(config("pndm", skip_prk_steps=False), steps=3)


@pytest.mark.parametrize("sampler", ["ipndm", "edm_euler"])
def test_samplers_that_take_no_timesteps(sampler: str) -> None:
    with pytest.raises(RequestError, match=r"timesteps: .*pass steps"):
        schedule_from_config(config(sampler), timesteps=[900, 1])


def test_ipndm_with_listed_levels_takes_as_many_steps() -> None:
    listed = config("ipndm", trained_betas=[1.0, 0.5, 0.0])
    assert len(schedule_from_config(listed, steps=2).rows) == 2
    with pytest.raises(RequestError, match="steps: got 5, but trained_betas lists 3 levels; use 2"):
        schedule_from_config(listed, steps=5)


def test_sigmas_of_a_flow() -> None:
    said = schedule_from_config(config("flow_euler"), sigmas=[1.0, 0.5, 0.0])
    unsaid = schedule_from_config(config("flow_euler"), sigmas=[1.0, 0.5])
    assert said.rows == unsaid.rows
    with pytest.raises(RequestError, match="sigmas: got 14, but those of a flow lie between"):
        schedule_from_config(config("flow_euler"), sigmas=[14.0, 0.0])


def test_sa_solver_cannot_end_without_noise() -> None:
    with pytest.raises(RequestError, match="sa_solver cannot end without noise"):
        schedule_from_config(config("sa_solver"), sigmas=[9.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("trained_betas", [0.1, 2.0], "expected a list of numbers from 0 to 1"),
        ("trained_betas", [], "expected a list of numbers from 0 to 1"),
        ("num_train_timesteps", 0, "got 0, expected a whole number of at least 1"),
        ("num_train_timesteps", 1e3, "got 1000.0, expected a whole number"),
        ("steps_offset", -1, "got -1, expected a whole number of at least 0"),
        ("beta_start", "0.1", "got '0.1', expected a number between 0 and 1"),
        ("beta_end", math.nan, "got nan, expected a number between 0 and 1"),
    ],
)
def test_broken_configuration(option: str, value: Any, expected: str) -> None:
    with pytest.raises(ScheduleError, match=f"{option}: {expected}"):
        schedule_from_config(config("ddim", **{option: value}), steps=4)


def test_listed_betas_must_be_as_many_as_training_steps() -> None:
    with pytest.raises(ScheduleError, match="trained_betas: got 2 for 1000 training steps"):
        schedule_from_config(config("ddim", trained_betas=[0.1, 0.2]), steps=4)


def test_epsilon_out_of_pure_noise() -> None:
    asked = config("ddim", rescale_betas_zero_snr=True)
    with pytest.raises(ScheduleError, match="rescale_betas_zero_snr: the first step is pure noise"):
        schedule_from_config(asked, steps=4, spacing="trailing")
    assert schedule_from_config(asked, steps=4, spacing="leading").rows


def test_unknown_spacing() -> None:
    with pytest.raises(RequestError, match="schedule: got 'caras'; did you mean karras"):
        schedule_from_config(config("euler"), steps=4, spacing="caras")


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "euler_ancestral", "lcm"])
def test_karras_where_there_is_none(sampler: str) -> None:
    with pytest.raises(RequestError, match=f"sampler '{sampler}' has no karras spacing; "):
        schedule_from_config(config(sampler), steps=4, spacing="karras")


@pytest.mark.parametrize(
    "wishes", [{}, {"steps": 3, "timesteps": [1]}, {"steps": 3, "sigmas": [1]}]
)
def test_exactly_one_wish(wishes: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"got steps=.*pass exactly one of them"):
        schedule_from_config(config("euler"), **wishes)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, True, math.nan, "4"])
def test_steps_that_make_no_sense(steps: Any) -> None:
    with pytest.raises(
        RequestError, match=r"steps: got .*, expected a whole number from 1 to 1000"
    ):
        schedule_from_config(config("euler"), steps=steps)


@pytest.mark.parametrize(
    "timesteps", [[], [math.nan], [5, 9], [5, 5], [1000], [-1], [[3], [1]], ["a"], [math.inf]]
)
def test_timesteps_that_make_no_sense(timesteps: Any) -> None:
    with pytest.raises(
        RequestError, match=r"timesteps: got .*, expected at least 1 finite numbers"
    ):
        schedule_from_config(config("euler"), timesteps=timesteps)


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 2.0], [math.nan, 0], [1.0, -1.0], 3])
def test_sigmas_that_make_no_sense(sigmas: Any) -> None:
    with pytest.raises(RequestError, match=r"sigmas: got .*, expected at least 2 finite numbers"):
        schedule_from_config(config("euler"), sigmas=sigmas)


@pytest.mark.parametrize("sampler", ["ddim", "pndm"])
def test_sigmas_where_there_are_none(sampler: str) -> None:
    with pytest.raises(RequestError, match=r"pass (timesteps|steps)"):
        schedule_from_config(config(sampler), sigmas=[2.0, 1.0, 0.0])


def test_pndm_takes_no_timesteps() -> None:
    with pytest.raises(RequestError, match="sampler 'pndm' needs an even spacing; pass steps"):
        schedule_from_config(config("pndm"), timesteps=[999, 1])


def test_steps_that_begin_beyond_the_training() -> None:
    with pytest.raises(RequestError, match="begin at timestep 1000, but the model knows 0 to 999"):
        schedule_from_config(config("ddim"), steps=1000)


def test_more_steps_than_levels() -> None:
    with pytest.raises(RequestError, match="1000 steps would visit a noise level twice"):
        schedule_from_config(config("dpmpp_2m"), steps=1000)
