"""Samplers: diffusers' trajectories, step by step, and what every sampler promises."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open

from edgediffusion import samplers
from edgediffusion.errors import RequestError
from edgediffusion.noise import TorchCpuNoise, noise_source, randn
from edgediffusion.options import CLASS_OF, SCHEDULERS
from edgediffusion.prediction import PREDICTIONS
from edgediffusion.samplers import SAMPLERS, STOCHASTIC, sample, trajectory
from edgediffusion.schedule import Schedule, schedule_from_config
from tests.golden.make_sampler_golden import (
    FILE,
    FRESH_SEED,
    NOISE_SEED,
    Case,
    cases,
    config_of,
    reference,
    scheduler_for,
    stand_in,
)

Array = NDArray[np.float32]

# The largest difference that we allow, of the largest value, after every step. Measured over
# 1305 runs: 5.2e-6. Both sides round float32; neither is the exact one.
PARITY = 1e-5

SHAPE = (2, 4, 16, 16)
needs_diffusers = pytest.mark.skipif(
    find_spec("diffusers") is None, reason="compares against diffusers"
)
every_sampler = pytest.mark.parametrize("sampler", sorted(SAMPLERS))


def default(sampler: str, steps: int = 4, prediction: str = "epsilon") -> Schedule:
    """A schedule of Stable Diffusion's training."""
    return schedule_from_config(config_of(sampler, "leading", prediction), steps)


def run(schedule: Schedule, noise: Array, seed: int = FRESH_SEED) -> list[Array]:
    """All latents of a run of the stand-in."""
    return list(sample(schedule, stand_in, noise, TorchCpuNoise(seed)))


def errors(ours: list[Array], theirs: list[Array]) -> list[float]:
    """The largest difference over the largest value, step by step."""
    return [float(abs(a - b).max() / abs(b).max()) for a, b in zip(ours, theirs, strict=True)]


def golden_cases() -> Iterator[Any]:
    """The recorded cases, each a test."""
    with safe_open(FILE, framework="numpy") as golden:
        for name, case in json.loads(golden.metadata()["cases"]).items():
            yield pytest.param(name, Case(**case), id=name)


@pytest.mark.parametrize(("name", "case"), list(golden_cases()))
def test_golden_trajectory(name: str, case: Case) -> None:
    with safe_open(FILE, framework="numpy") as golden:
        noise, expected = golden.get_tensor("noise"), golden.get_tensor(name)
    np.testing.assert_array_equal(noise, randn(noise.shape, NOISE_SEED))
    schedule = schedule_from_config(case.config, case.steps, case.sampler)
    assert max(errors(run(schedule, noise), list(expected))) <= PARITY


@needs_diffusers
@pytest.mark.parametrize("case", list(cases(steps=(1, 5, 20, 50))), ids=str)
def test_trajectory_of_diffusers(case: Case) -> None:
    noise = randn(SHAPE, 11)
    scheduler = scheduler_for(case.sampler, case.config, num_inference_steps=case.steps)
    ours = run(schedule_from_config(case.config, case.steps), noise)
    assert max(errors(ours, reference(scheduler, noise))) <= PARITY


OPTIONS: list[Mapping[str, Any]] = [
    {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    {"steps_offset": 0, "num_train_timesteps": 400},
    {"set_alpha_to_one": True},
    {"clip_sample": True, "clip_sample_range": 0.7},
    {"final_sigmas_type": "sigma_min"},
    {"final_sigmas_type": "sigma_min", "lower_order_final": False},
    {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
    {"lambda_min_clipped": -2.0},
    {"sigma_min": 0.1, "sigma_max": 10.0},
    {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
]


def option_cases() -> Iterator[Any]:
    """The options above, on the samplers that know them, wherever the table is tame."""
    for case in cases(steps=(7, 16)):
        for options in OPTIONS:
            known = SCHEDULERS[CLASS_OF[case.sampler]].defaults.keys() >= options.keys()
            dwarfed = "squaredcos_cap_v2" in options.values() and case.sampler != "dpmpp_2m"
            if known and not dwarfed and case.config["prediction_type"] != "sample":
                config = {**case.config, **options}
                yield pytest.param(replace(case, config=config), id=f"{case}-{[*options.values()]}")


@needs_diffusers
@pytest.mark.parametrize("case", list(option_cases()))
def test_options_of_diffusers(case: Case) -> None:
    noise = randn((1, 4, 8, 8), 11)
    scheduler = scheduler_for(case.sampler, case.config, num_inference_steps=case.steps)
    ours = run(schedule_from_config(case.config, case.steps), noise)
    assert max(errors(ours, reference(scheduler, noise))) <= PARITY


@needs_diffusers
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize(
    "case", [c for c in cases(steps=(3, 20)) if c.config["prediction_type"] != "epsilon"], ids=str
)
def test_noise_that_dwarfs_the_picture(case: Case, beta_schedule: str, zero_snr: bool) -> None:
    # With sigma 4096 (zero terminal SNR) or 20291 (cosine) float32 keeps of the picture what it
    # keeps of sigma * noise: diffusers rounds to within 2**-24 of that, we cancel it exactly.
    # From such noise epsilon tells nothing of x0; the models that begin there predict v or x0.
    config = {
        **case.config,
        "beta_schedule": beta_schedule,
        "rescale_betas_zero_snr": zero_snr,
    }
    noise = randn((1, 4, 8, 8), 11)
    schedule = schedule_from_config(config, case.steps)
    steps = list(trajectory(schedule, stand_in, noise, TorchCpuNoise(FRESH_SEED)))
    assert all(np.isfinite(step.latents).all() for step in steps)
    scheduler = scheduler_for(case.sampler, config, num_inference_steps=case.steps)
    expected = reference(scheduler, noise)
    if not np.isfinite(expected[0]).all():
        pytest.skip("diffusers' root of a difference of squares is NaN in float32; ours is finite")
    worst = max(row.sigma / row.alpha for row in schedule.rows if row.alpha)
    rounding, largest = 2**-22 * worst * float(abs(noise).max()), 0.0
    for step, theirs in zip(steps, expected, strict=True):
        largest = max(largest, *(float(abs(array).max()) for array in (theirs, step.denoised)))
        assert abs(step.latents - theirs).max() <= PARITY * largest + rounding


@needs_diffusers
@every_sampler
def test_a_batch_draws_its_fresh_noise_as_diffusers_does(sampler: str) -> None:
    import torch

    noise = noise_source([5, 9])
    scheduler = scheduler_for(
        sampler, config_of(sampler, "leading", "epsilon"), num_inference_steps=5
    )
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 9)]
    x = torch.cat([torch.randn((1, 4, 8, 8), generator=each) for each in generators])
    x = x * scheduler.init_noise_sigma
    extra = {"generator": generators} if sampler in STOCHASTIC else {}
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, timestep)
        raw = stand_in(scaled, float(timestep), torch.sin, torch.roll)
        x = scheduler.step(raw, timestep, x, **extra).prev_sample
    *_, ours = sample(default(sampler, 5), stand_in, noise((2, 4, 8, 8)), noise)
    assert max(errors([ours], [x.numpy()])) <= PARITY


@every_sampler
@pytest.mark.parametrize("prediction", sorted(PREDICTIONS))
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_state_stays_float32(sampler: str, prediction: str, dtype: type) -> None:
    if (sampler, prediction) == ("pndm", "sample"):
        pytest.skip("diffusers' PNDM has no sample prediction")

    def model(x: Array, timestep: float) -> Any:
        assert x.dtype == np.float32
        assert type(timestep) is float
        return stand_in(x, timestep).astype(dtype)

    def fresh(shape: tuple[int, ...]) -> Any:
        return randn(shape, 1).astype(dtype)

    noise: NDArray[Any] = randn((1, 4, 8, 8), 0).astype(dtype)
    for step in trajectory(default(sampler, 6, prediction), model, noise, fresh):
        assert step.latents.dtype == step.denoised.dtype == np.float32
        assert step.latents.shape == step.denoised.shape == noise.shape


@every_sampler
def test_the_same_call_twice_is_identical(sampler: str) -> None:
    noise = randn(SHAPE, 0)
    once, twice = (run(default(sampler), noise) for _ in range(2))
    for a, b in zip(once, twice, strict=True):
        np.testing.assert_array_equal(a, b)


@every_sampler
def test_another_seed_is_another_trajectory(sampler: str) -> None:
    one, other = (run(default(sampler), randn(SHAPE, seed)) for seed in (0, 1))
    assert all(abs(a - b).max() > 0.01 for a, b in zip(one, other, strict=True))


@every_sampler
def test_fresh_noise_matters_where_it_is_drawn(sampler: str) -> None:
    noise = randn(SHAPE, 0)
    one, other = (run(default(sampler), noise, seed)[-1] for seed in (0, 1))
    assert np.array_equal(one, other) != (sampler in STOCHASTIC)


@every_sampler
def test_samplers_draw_noise_only_where_they_say_so(sampler: str) -> None:
    shapes = []

    def fresh(shape: tuple[int, ...]) -> Array:
        shapes.append(shape)
        return np.zeros(shape, np.float32)

    list(sample(default(sampler, 5), stand_in, randn(SHAPE, 0), fresh))
    # The last step ends without noise and draws none.
    assert shapes == ([SHAPE] * 4 if sampler in STOCHASTIC else [])


@every_sampler
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_steps_are_counted(sampler: str, steps: int) -> None:
    calls: list[float] = []

    def model(x: Array, timestep: float) -> Array:
        calls.append(timestep)
        return stand_in(x, timestep)

    schedule = default(sampler, steps)
    seen = list(trajectory(schedule, model, randn(SHAPE, 0), TorchCpuNoise(0)))
    total = steps + (sampler == "pndm" and steps > 1)
    assert [(step.index, step.total) for step in seen] == [(i, total) for i in range(total)]
    assert calls == [row.timestep for row in schedule.rows]
    assert all(high.sigma >= low.sigma for high, low in pairwise(seen))
    assert seen[-1].sigma == schedule.rows[-1].end.sigma


@settings(deadline=None, max_examples=60)
@given(
    sampler=st.sampled_from(sorted(SAMPLERS)),
    steps=st.integers(1, 60),
    spacing=st.sampled_from(["leading", "trailing", "linspace"]),
    value=st.floats(-2, 2, width=32),
)
def test_a_model_that_knows_the_picture_gets_it(
    sampler: str, steps: int, spacing: str, value: float
) -> None:
    # The flow towards a fixed x0 is straight: every sampler must be exact on it, if its steps
    # meet. diffusers' pndm makes steps of one length even where the spacing is not even.
    spacing = "leading" if sampler == "pndm" else spacing
    config = config_of(sampler, spacing, "epsilon", set_alpha_to_one=True)
    schedule = schedule_from_config(config, steps)
    rows = iter(schedule.rows)

    def model(x: Array, _: float) -> Array:
        row = next(rows)
        noise: Array = (x / row.input_scale - row.alpha * value) / row.sigma
        return noise

    latents = list(sample(schedule, model, randn((1, 4, 4, 4), 0), TorchCpuNoise(0)))[-1]
    end = schedule.rows[-1].end
    # For the same reason diffusers' ddim may end a little above no noise.
    assert abs(latents - end.alpha * value).max() <= 4.5 * end.sigma + 1e-4


@every_sampler
def test_denoised_is_what_the_model_predicted(sampler: str) -> None:
    schedule = default(sampler, 5, "sample" if sampler != "pndm" else "epsilon")
    x = schedule.init_noise_scale * randn(SHAPE, 0)
    for row, step in zip(
        schedule.rows,
        trajectory(schedule, stand_in, randn(SHAPE, 0), TorchCpuNoise(0)),
        strict=True,
    ):
        raw = stand_in(row.input_scale * x, row.timestep)
        expected = raw if sampler != "pndm" else (x - row.sigma * raw) / row.alpha
        np.testing.assert_allclose(step.denoised, expected, rtol=1e-4, atol=1e-4)
        x = step.latents


@every_sampler
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_a_model_may_use_its_buffer_again(sampler: str, prediction: str) -> None:
    if (sampler, prediction) == ("pndm", "sample"):
        pytest.skip("diffusers' PNDM has no sample prediction")
    buffer = np.empty(SHAPE, np.float32)

    def model(x: Array, timestep: float) -> Array:
        buffer[...] = stand_in(x, timestep)
        return buffer

    noise = randn(SHAPE, 0)
    schedule = default(sampler, 6, prediction)
    again = list(sample(schedule, model, noise, TorchCpuNoise(FRESH_SEED)))
    for a, b in zip(again, run(schedule, noise), strict=True):
        np.testing.assert_array_equal(a, b)


@every_sampler
def test_what_was_yielded_stays(sampler: str) -> None:
    steps, copies = [], []
    noise = randn(SHAPE, 0)
    for step in trajectory(default(sampler, 6), stand_in, noise, TorchCpuNoise(0)):
        steps.append(step)
        copies.append((step.latents.copy(), step.denoised.copy()))
    for step, (latents, denoised) in zip(steps, copies, strict=True):
        np.testing.assert_array_equal(step.latents, latents)
        np.testing.assert_array_equal(step.denoised, denoised)
    np.testing.assert_array_equal(noise, randn(SHAPE, 0))


def test_leaving_the_loop_calls_the_model_no_more() -> None:
    calls = []

    def model(x: Array, timestep: float) -> Array:
        calls.append(timestep)
        return stand_in(x, timestep)

    for step in trajectory(default("euler", 9), model, randn(SHAPE, 0)):
        if step.index == 2:
            break
    assert len(calls) == 3


@every_sampler
def test_start_lies_under_the_first_noise(sampler: str) -> None:
    noise, clean = randn(SHAPE, 0), randn(SHAPE, 1)
    schedule = default(sampler)
    inputs = []

    def model(x: Array, timestep: float) -> Array:
        inputs.append(x)
        return stand_in(x, timestep)

    next(trajectory(schedule, model, noise, TorchCpuNoise(0), start=clean))
    first = schedule.rows[0]
    expected = first.input_scale * (first.alpha * clean + first.sigma * noise)
    np.testing.assert_allclose(inputs[0], expected, rtol=1e-6, atol=1e-6)


def test_a_stochastic_sampler_needs_rng() -> None:
    with pytest.raises(RequestError, match="rng: sampler 'euler_ancestral' draws fresh noise"):
        trajectory(default("euler_ancestral"), stand_in, randn(SHAPE, 0))


def test_a_sampler_that_draws_unannounced_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "STOCHASTIC", frozenset())
    with pytest.raises(AssertionError, match="but is not in STOCHASTIC"):
        list(sample(default("euler_ancestral"), stand_in, randn(SHAPE, 0)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_noise_that_is_not_finite(value: float) -> None:
    noise = randn(SHAPE, 0)
    noise[0, 0, 0, 0] = value
    with pytest.raises(RequestError, match="noise: holds NaN or infinity; pass"):
        sample(default("ddim"), stand_in, noise)


@pytest.mark.parametrize(
    "start", [np.zeros((1, 4, 8, 8), np.float32), np.full(SHAPE, np.nan, np.float32)]
)
def test_start_that_does_not_fit(start: Array) -> None:
    with pytest.raises(RequestError, match=r"start: got shape .*, expected finite latents"):
        sample(default("ddim"), stand_in, randn(SHAPE, 0), start=start)


def test_a_model_of_another_shape() -> None:
    latents = sample(default("ddim"), lambda x, _: x[:, :3], randn(SHAPE, 0))
    with pytest.raises(RequestError, match=r"model: returned shape \(2, 3, 16, 16\) for a sample"):
        next(latents)


def test_golden_files_stay_small() -> None:
    assert sum(file.stat().st_size for file in Path(FILE).parent.glob("*.safetensors")) < 500_000
