"""Our trajectories against k-diffusion's, recorded in tests/golden, given the same sigmas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

import edgediffusion as ed
from tests.golden.make_k_diffusion_golden import FILE, SIGMA_RANGE, STEPS, TIME, Case
from tests.golden.make_sampler_golden import FRESH_SEED, NOISE_SEED, stand_in

Array = NDArray[np.float32]
BOUND = 1e-5


def cases() -> Iterator[Any]:
    """The recorded cases, each a test."""
    with safe_open(FILE, framework="numpy") as golden:
        for name, case in json.loads(golden.metadata()["cases"]).items():
            yield pytest.param(name, Case(**case), id=name)


def golden(name: str) -> Array:
    """A recorded array."""
    with safe_open(FILE, framework="numpy") as file:
        array: Array = file.get_tensor(name)
    return array


def schedule_of(case: Case, sigmas: Array) -> ed.Schedule:
    """Our schedule of the case, at given sigmas."""
    config = {"_class_name": case.class_name, "beta_schedule": "scaled_linear"}
    return ed.schedule_from_config(config, sigmas=sigmas.tolist(), **case.options)


def exploding_states(schedule: ed.Schedule, noise: Array) -> list[Array]:
    """Our latents after each step, in k-diffusion's state, whose noise is sigma."""
    latents = ed.sample(
        schedule, lambda x, _: stand_in(x, TIME), noise, rng=ed.TorchCpuNoise(FRESH_SEED)
    )
    rows = schedule.rows
    states = [x / row.end.alpha for x, row in zip(latents, rows, strict=True)]
    calls = 2 if len(rows) == 2 * STEPS - 1 else 1
    return [*states[calls - 1 : -1 : calls], states[-1]]


@pytest.mark.parametrize(("name", "case"), list(cases()))
def test_trajectory_of_k_diffusion(name: str, case: Case) -> None:
    noise, expected = golden("noise"), golden(name)
    np.testing.assert_array_equal(noise, ed.randn(noise.shape, NOISE_SEED))
    ours = exploding_states(schedule_of(case, golden("sigmas")), noise)
    pairs = list(zip(ours, expected, strict=True))
    near = [bool(abs(a - b).max() <= BOUND * abs(b).max()) for a, b in pairs]
    assert near[: case.agree] == [True] * case.agree
    assert all(near) == (not case.differs), case.differs


def test_karras_sigmas_of_k_diffusion() -> None:
    config = {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear"}
    low, high = SIGMA_RANGE
    schedule = ed.schedule_from_config(
        config, STEPS, spacing="karras", sigma_min=low, sigma_max=high
    )
    sigmas = [row.sigma for row in schedule.rows] + [schedule.rows[-1].end.sigma]
    np.testing.assert_allclose(sigmas, golden("sigmas"), rtol=2e-6)
