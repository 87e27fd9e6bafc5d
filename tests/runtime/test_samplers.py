"""Samplers: diffusers' trajectories, step by step, and what every sampler promises."""

from __future__ import annotations

import json
import tracemalloc
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open

from edgediffusion.errors import RequestError
from edgediffusion.levels import Level
from edgediffusion.noise import TorchCpuNoise, noise_source, randn
from edgediffusion.options import NAMES
from edgediffusion.prediction import PREDICTIONS, Denoised
from edgediffusion.samplers import SAMPLERS, sample, trajectory
from edgediffusion.samplers.parts import lagrange
from edgediffusion.schedule import Schedule, schedule_from_config
from edgediffusion.scheduler_classes import SCHEDULERS
from edgediffusion.tables import TABLES
from tests.golden.make_sampler_golden import (
    FILE,
    FRESH_SEED,
    NOISE_SEED,
    STABLE_DIFFUSION,
    Case,
    stand_in,
)

Array = NDArray[np.float32]

# The largest difference that we allow, of the largest value, after every step; tests/parity has
# every option.
PARITY = 1e-5

SHAPE = (2, 4, 16, 16)
needs_diffusers = pytest.mark.skipif(
    find_spec("diffusers") is None, reason="compares against diffusers"
)
TWICE = {name for name, layout in TABLES.items() if layout.calls == 2}
every_sampler = pytest.mark.parametrize("sampler", sorted(SAMPLERS))


def default(sampler: str, steps: int = 4, prediction: str = "epsilon", **more: Any) -> Schedule:
    """A schedule of Stable Diffusion's training, or of the kind that the sampler is for."""
    name = NAMES[sampler].scheduler
    known = SCHEDULERS[name].defaults
    config: dict[str, Any] = {"_class_name": name}
    if "beta_schedule" in known:
        config = STABLE_DIFFUSION | {"timestep_spacing": "leading"} | config
    if "prediction_type" in known:
        config["prediction_type"] = prediction
    if prediction == "flow_prediction":
        more = {"use_flow_sigmas": True} | more
    if sampler == "dpmpp_sde":
        more = {"noise_sampler_seed": FRESH_SEED} | more
    return schedule_from_config(config, steps, sampler, **more)


def predictions(sampler: str) -> tuple[str, ...]:
    """What models of the sampler may predict, as far as it says."""
    return tuple(SCHEDULERS[NAMES[sampler].scheduler].only.get("prediction_type", ("epsilon",)))


every_sampler_and_prediction = pytest.mark.parametrize(
    ("sampler", "prediction"), [(s, p) for s in sorted(SAMPLERS) for p in predictions(s)]
)
STOCHASTIC = {name for name in SAMPLERS if default(name, 6).stochastic}
EVERY_STEP = {"sa_solver"}  # draws in the last step, too, though it has no use for it


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
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "euler_ancestral", "dpm_2_ancestral", "lcm"])
def test_a_batch_draws_its_fresh_noise_as_diffusers_does(sampler: str) -> None:
    import diffusers
    import torch

    noise = noise_source([5, 9])
    with warnings.catch_warnings():  # diffusers' own use of torch and NumPy
        warnings.simplefilter("ignore")
        name = NAMES[sampler].scheduler
        scheduler = getattr(diffusers, name).from_config(STABLE_DIFFUSION)
        scheduler.set_timesteps(5)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 9)]
    x = torch.cat([torch.randn((1, 4, 8, 8), generator=each) for each in generators])
    x = x * scheduler.init_noise_sigma
    eta = {"eta": 0.5} if sampler == "ddim" else {}
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, timestep)
        raw = stand_in(scaled, float(timestep), torch.sin, torch.roll)
        x = scheduler.step(raw, timestep, x, generator=generators, **eta).prev_sample
    schedule = schedule_from_config(STABLE_DIFFUSION | {"_class_name": name}, 5, **eta)
    *_, ours = sample(schedule, stand_in, noise((2, 4, 8, 8)), noise)
    assert max(errors([ours], [x.numpy()])) <= PARITY


@every_sampler_and_prediction
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_state_stays_float32(sampler: str, prediction: str, dtype: type) -> None:
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
    if sampler != "dpmpp_sde":  # whose path has a seed of its own
        assert np.array_equal(one, other) != (sampler in STOCHASTIC)


@every_sampler
def test_samplers_draw_noise_only_where_they_say_so(sampler: str) -> None:
    shapes = []

    def fresh(shape: tuple[int, ...]) -> Array:
        shapes.append(shape)
        return np.zeros(shape, np.float32)

    schedule = default(sampler, 5)
    list(sample(schedule, stand_in, randn(SHAPE, 0), fresh))
    drawn = 5 if sampler in EVERY_STEP else sum(row.fresh > 0 for row in schedule.rows)
    assert shapes == ([SHAPE] * drawn if sampler in STOCHASTIC else [])


@every_sampler
@pytest.mark.parametrize("steps", [4, 5, 7])
def test_steps_are_counted(sampler: str, steps: int) -> None:
    calls: list[float] = []

    def model(x: Array, timestep: float) -> Array:
        calls.append(timestep)
        return stand_in(x, timestep)

    schedule = default(sampler, steps)
    seen = list(trajectory(schedule, model, randn(SHAPE, 0), TorchCpuNoise(0)))
    doubled = NAMES[sampler].scheduler in TWICE
    total = 2 * steps - 1 if doubled else steps + (sampler in ("pndm", "plms"))
    assert [(step.index, step.total) for step in seen] == [(i, total) for i in range(total)]
    assert calls == [row.timestep for row in schedule.rows]
    assert seen[-1].sigma == schedule.rows[-1].end.sigma


@settings(deadline=None, max_examples=100)
@given(
    sampler=st.sampled_from(sorted(set(SAMPLERS) - {"sa_solver", "lcm", "ipndm"})),
    steps=st.integers(4, 50),
    value=st.floats(-2, 2, width=32),
)
def test_a_model_that_knows_the_picture_gets_it(sampler: str, steps: int, value: float) -> None:
    # The flow towards a fixed x0 is straight: every sampler must be exact on it. (lcm mixes the
    # state in, ipndm takes the first state for noise alone as diffusers does, and sa_solver's
    # stochastic weights are exact in expectation only.)
    schedule = default(sampler, steps)
    rows = iter(schedule.rows)

    def model(x: Array, _: float) -> Array:
        row = next(rows)
        skip, out = PREDICTIONS[schedule.prediction](row.level, schedule.conversion.data)
        raw: Array = (value - skip * x / row.input_scale) / out
        return raw

    latents = list(sample(schedule, model, randn((1, 4, 4, 4), 0), TorchCpuNoise(0)))[-1]
    end = schedule.rows[-1].end
    assert abs(latents - end.alpha * value).max() <= 4.5 * end.sigma + 2e-3


@every_sampler
def test_denoised_is_what_the_model_predicted(sampler: str) -> None:
    if sampler == "lcm":
        pytest.skip("shows its own estimate of the picture, which mixes the state in")
    schedule = default(sampler, 5)
    x = schedule.init_noise_scale * randn(SHAPE, 0)
    steps = trajectory(schedule, stand_in, randn(SHAPE, 0), TorchCpuNoise(0))
    for row, step in zip(schedule.rows, steps, strict=True):
        raw = stand_in(row.input_scale * x, row.timestep)
        skip, out = PREDICTIONS[schedule.prediction](row.level, schedule.conversion.data)
        expected = skip * x + out * raw
        np.testing.assert_allclose(step.denoised, expected, rtol=1e-3, atol=1e-3)
        x = step.latents


@every_sampler_and_prediction
def test_a_model_may_use_its_buffer_again(sampler: str, prediction: str) -> None:
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
    if sampler == "ipndm":
        pytest.skip("begins at noise alone")
    expected = first.input_scale * (first.alpha * clean + first.sigma * noise)
    np.testing.assert_allclose(inputs[0], expected, rtol=1e-6, atol=1e-6)


def test_a_stochastic_sampler_needs_rng() -> None:
    with pytest.raises(RequestError, match="rng: sampler 'euler_ancestral' draws fresh noise"):
        trajectory(default("euler_ancestral"), stand_in, randn(SHAPE, 0))


def test_a_sampler_that_draws_unannounced_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Schedule, "stochastic", False)
    with pytest.raises(AssertionError, match="but its table has no fresh noise"):
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


def test_dpmpp_sde_draws_its_path_from_the_noise_asked_for() -> None:
    noise = randn(SHAPE, 0)
    made = {}
    for kind in ("torch-cpu", "torch-cuda"):
        schedule = default("dpmpp_sde", noise_sampler_kind=kind)
        *_, made[kind] = sample(schedule, stand_in, noise)
    assert abs(made["torch-cpu"] - made["torch-cuda"]).max() > 0.01
    with pytest.raises(RequestError, match="noise: got 'cuda'; did you mean torch-cuda"):
        next(sample(default("dpmpp_sde", noise_sampler_kind="cuda"), stand_in, noise))


def test_dpmpp_sde_wants_a_seed() -> None:
    schedule = default("dpmpp_sde", noise_sampler_seed=None)
    with pytest.raises(RequestError, match="noise_sampler_seed: sampler 'dpmpp_sde' draws from a"):
        next(sample(schedule, stand_in, randn(SHAPE, 0)))


def test_learned_variances_are_split_off() -> None:
    config = {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
    schedule = schedule_from_config(config, 4)
    noise = randn(SHAPE, 0)

    def learned(x: Array, timestep: float) -> Array:
        return np.concatenate([stand_in(x, timestep), 0 * x], 1)

    *_, latents = sample(schedule, learned, noise, TorchCpuNoise(0))
    assert latents.shape == SHAPE
    with pytest.raises(RequestError, match=r"expected \(2, 8, 16, 16\), as its variance_type says"):
        next(sample(schedule, stand_in, noise, TorchCpuNoise(0)))


@every_sampler
def test_nothing_is_kept_that_grows_with_the_steps(sampler: str) -> None:
    def most(steps: int) -> int:
        schedule, noise = default(sampler, steps), randn(SHAPE, 0)
        iterator = sample(schedule, stand_in, noise, TorchCpuNoise(0))
        next(iterator)
        tracemalloc.start()
        for _ in iterator:
            pass
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    assert most(48) <= most(16) + 3 * randn(SHAPE, 0).nbytes


@settings(deadline=None)
@given(
    nodes=st.lists(st.integers(-40, 40), min_size=1, max_size=4, unique=True),
    polynomial=st.lists(st.integers(-9, 9), min_size=4, max_size=4),
)
def test_lagrange_integrates_what_goes_through_its_nodes(
    nodes: list[int], polynomial: list[int]
) -> None:
    places = [node / 8 for node in nodes]
    known = np.polynomial.Polynomial(polynomial[: len(places)])
    weights = lagrange(places, [1 / (k + 1) for k in range(len(places))])  # from 0 to 1
    values = [weight * known(place) for weight, place in zip(weights, places, strict=True)]
    room = 1e-9 * (1 + sum(map(abs, values)))
    assert sum(values) == pytest.approx(known.integ()(1), abs=room)


@pytest.mark.parametrize("share", [-1.0, -0.9, -0.5, -0.02, 0.1])
def test_a_move_along_the_slope_is_rounded_at_its_smaller_part(share: float) -> None:
    """Of a short move nothing but the sum is rounded at the state's size; of a long one, nothing.

    What is left of the state at the end of a long move is small, and so has to be its error.
    """
    level = Level(1.0, 14.0)
    x0 = randn(SHAPE, 1)
    x = (x0 + np.float32(level.sigma) * randn(SHAPE, 0)).astype(np.float32)
    said = Denoised(x0, x, level, x0, skip=0.0, out=1.0)
    exact = x + share * (x.astype(np.float64) - x0)
    moved = said.along(share * level.sigma)
    assert moved.dtype == np.float32
    rounding = 2.0**-24 * (abs(exact) + 6 * abs(exact - x))
    if abs(share) > 0.5:
        rounding = 6 * 2.0**-24 * (abs((1 + share) * x) + abs(share * x0))
    assert (abs(moved - exact) <= rounding + 1e-12).all()


def test_golden_files_stay_small() -> None:
    assert sum(file.stat().st_size for file in Path(FILE).parent.glob("*.safetensors")) < 500_000
