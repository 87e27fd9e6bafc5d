"""Brownian noise equals torchsde's: golden values, then torchsde itself where it is installed."""

from __future__ import annotations

import itertools
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open

from edgediffusion.brownian import _Path, brownian_noise, sde_levels
from edgediffusion.errors import RequestError
from edgediffusion.noise import TorchCpuNoise
from tests.other_roundings import on_amd

GOLDEN = Path(__file__).parents[1] / "golden" / "noise.safetensors"
LOW, HIGH = 0.0292, 14.6146
REFERENCE = ("torch", "torchsde", "diffusers")
needs_torchsde = pytest.mark.skipif(
    any(find_spec(name) is None for name in REFERENCE), reason="compares against torchsde"
)
# The increments are equal; the float32 root of the step's width may differ by one bit.
ONE_BIT = 2.4e-7

seeds = st.integers(0, 2**64 - 1)
levels = st.floats(LOW, HIGH).map(lambda level: float(np.float32(level)))


def karras(steps: int) -> list[float]:
    ramp = np.linspace(HIGH ** (1 / 7), LOW ** (1 / 7), steps)
    return [float(level) for level in (ramp**7).astype(np.float32)]


def queries(steps: int) -> list[tuple[float, float]]:
    """Levels between which DPM++ SDE asks for noise: to the middle of a step, then to its end."""
    pairs = []
    for sigma, sigma_next in itertools.pairwise(karras(steps)):
        first, middle, last = sde_levels(sigma, sigma_next)
        pairs += [(first, middle), (first, last)]
    return pairs


def torchsde_noise(shape: tuple[int, ...], seed: Any, low: float, high: float) -> Any:
    """Make diffusers' own noise sampler, or skip where torch draws other bits."""
    torch = pytest.importorskip("torch")
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this torch draws without AVX2")
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    return BrownianTreeNoiseSampler(torch.zeros(shape), low, high, seed)


def assert_equal_noise(reference: Any, noise: Any, pairs: list[tuple[float, float]]) -> None:
    """Compare increments bit for bit, and the noise that is scaled from them."""
    for sigma, sigma_next in pairs:
        got = noise(sigma, sigma_next)
        root = np.sqrt(abs(np.float32(sigma) - np.float32(sigma_next)))
        increment = reference.tree(sigma, sigma_next).numpy()
        np.testing.assert_array_equal(got.view(np.uint32), (increment / root).view(np.uint32))
        expected = reference(sigma, sigma_next).numpy()
        np.testing.assert_allclose(got, expected, rtol=ONE_BIT, atol=0)


def test_golden_noise() -> None:
    with safe_open(GOLDEN, framework="numpy") as golden:
        for i, (shape, seed, steps) in enumerate(json.loads(golden.metadata()["brownian"])):
            pairs = golden.get_tensor(f"brownian/{i}/levels").tolist()
            expected = golden.get_tensor(f"brownian/{i}/noise")
            assert len(pairs) == len(expected) == 2 * (steps - 1)
            low, high = np.min(pairs), np.max(pairs)
            noise = brownian_noise(tuple(shape), seed, float(low), float(high))
            got = np.stack([noise(*pair) for pair in pairs])
            np.testing.assert_allclose(got, expected, rtol=ONE_BIT, atol=0)


@needs_torchsde
@pytest.mark.filterwarnings("ignore:Should have:UserWarning")  # torchsde, at the range's ends
@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize(
    ("shape", "seed"),
    [
        ((1, 4, 8, 8), 0),
        ((2, 4, 8, 8), 7),
        ((2, 4, 16, 16), [5, 2**40 + 3]),
        ((3, 4, 6, 7), [1, 0, 2**63]),
        ((2, 3), 11),
        ((1, 1, 2, 5), [3]),
        ((17,), 2**64 - 1),
    ],
)
def test_equals_torchsde(shape: tuple[int, ...], seed: Any, steps: int) -> None:
    pairs = queries(steps)
    low, high = min(map(min, pairs)), max(map(max, pairs))
    noise = brownian_noise(shape, seed, low, high)
    assert_equal_noise(torchsde_noise(shape, seed, low, high), noise, pairs)


@needs_torchsde
@pytest.mark.filterwarnings("ignore:Should have:UserWarning")
@settings(deadline=None, max_examples=40)
@given(seed=seeds, size=st.integers(1, 40), ends=st.lists(st.tuples(levels, levels), max_size=5))
def test_equals_torchsde_in_any_order(
    seed: int, size: int, ends: list[tuple[float, float]]
) -> None:
    pairs = [pair for pair in ends if abs(pair[0] - pair[1]) > 1e-5]
    noise = brownian_noise((size,), seed, LOW, HIGH)
    assert_equal_noise(torchsde_noise((size,), seed, LOW, HIGH), noise, pairs)


@needs_torchsde
@pytest.mark.filterwarnings("ignore:Should have:UserWarning")
def test_equals_torchsde_at_full_size() -> None:
    noise = brownian_noise((1, 4, 64, 64), 9, LOW, HIGH)
    assert_equal_noise(torchsde_noise((1, 4, 64, 64), 9, LOW, HIGH), noise, queries(8))


@on_amd
@needs_torchsde
def test_levels_are_those_of_diffusers() -> None:
    import torch

    same = 0
    table = karras(200)
    for sigma, sigma_next in itertools.pairwise(table):
        start, end = (torch.tensor(level).log().neg() for level in (sigma, sigma_next))
        times = (start, start + (end - start) * 0.5, end)
        expected = [time.neg().exp().item() for time in times]
        got = sde_levels(sigma, sigma_next)
        np.testing.assert_allclose(got, expected, rtol=ONE_BIT)
        same += got == tuple(expected)
    assert same > 0.9 * len(table)  # PyTorch's float32 exponential is not always the nearest


@settings(deadline=None, max_examples=40)
@given(seed=seeds, ends=st.lists(levels, min_size=3, max_size=3, unique=True))
def test_increments_add_up(seed: int, ends: list[float]) -> None:
    a, b, c = sorted(ends)
    if min(b - a, c - b) < 1e-5:
        return
    noise = brownian_noise((64,), seed, LOW, HIGH)
    parts = noise(a, b) * np.sqrt(b - a) + noise(b, c) * np.sqrt(c - b)
    np.testing.assert_allclose(parts, noise(a, c) * np.sqrt(c - a), atol=2e-5)
    np.testing.assert_array_equal(noise(c, a), -noise(a, c))


def test_the_order_of_queries_does_not_matter() -> None:
    pairs = queries(20)
    falling, rising = (brownian_noise((4, 4), 3, LOW, HIGH) for _ in range(2))
    first = {pair: falling(*pair) for pair in pairs}
    for pair in reversed(pairs):
        np.testing.assert_array_equal(rising(*pair), first[pair])


def test_is_normal_and_independent_between_steps() -> None:
    noise = brownian_noise((100_000,), 5, LOW, HIGH)
    first, second = (noise(*pair).astype(np.float64) for pair in ((14.0, 6.0), (6.0, 0.5)))
    for drawn in (first, second):
        assert abs(drawn.mean()) < 0.02
        assert abs(drawn.std() - 1) < 0.01
    assert abs((first * second).mean()) < 0.02


@pytest.mark.parametrize("kind", ["torch-cpu", "torch-cuda"])
def test_an_image_does_not_depend_on_its_neighbours(kind: Any) -> None:
    batch = brownian_noise((3, 4, 8, 8), [3, 4, 5], LOW, HIGH, kind)
    single = brownian_noise((1, 4, 8, 8), [4], LOW, HIGH, kind)
    np.testing.assert_array_equal(batch(9.0, 2.0)[1:2], single(9.0, 2.0))
    assert batch(9.0, 2.0).dtype == np.float32


def test_memory_does_not_grow_with_the_steps() -> None:
    path = _Path((8,), 0, LOW, HIGH, TorchCpuNoise)
    sizes = []
    for pair in queries(30):
        path.between(*sorted(pair))
        sizes.append(len(path._lefts))
    assert max(sizes) == sizes[-1] == 64


def test_a_negative_seed_is_read_as_torch_does() -> None:
    one, other = (brownian_noise((16,), seed, LOW, HIGH) for seed in (-1, 2**64 - 1))
    np.testing.assert_array_equal(one(9.0, 2.0), other(9.0, 2.0))


def test_levels_slightly_outside_are_the_ends() -> None:
    noise = brownian_noise((16,), 0, LOW, HIGH)
    inner, outer = noise(HIGH, 1.0), noise(HIGH * (1 + 1e-6), 1.0)
    np.testing.assert_allclose(inner, outer, rtol=1e-5)


def test_a_schedule_of_one_level_needs_no_noise() -> None:
    brownian_noise((1, 4, 8, 8), 0, HIGH, HIGH)


@pytest.mark.parametrize("ends", [(2.0, 1.0), (-1.0, 2.0), (0.1, float("inf")), (float("nan"), 1)])
def test_no_range(ends: tuple[float, float]) -> None:
    with pytest.raises(RequestError, match=r"sigma range: got .*, expected 0 <= sigma_min"):
        brownian_noise((16,), 0, *ends)


@pytest.mark.parametrize("pair", [(20.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)])
def test_levels_outside_the_range(pair: tuple[float, float]) -> None:
    noise = brownian_noise((16,), 0, LOW, HIGH)
    with pytest.raises(RequestError, match=r"sigma: got .*, expected levels from 0\.0292 to 14\."):
        noise(*pair)


def test_equal_levels() -> None:
    noise = brownian_noise((16,), 0, LOW, HIGH)
    with pytest.raises(RequestError, match=r"expected levels at least 1e-6 apart; take fewer"):
        noise(1.0, 1.0)


@pytest.mark.parametrize("shape", [(3, 4), ()])
def test_another_number_of_seeds(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=r"for 2 seed\(s\), expected the batch first"):
        brownian_noise(shape, [1, 2], LOW, HIGH)


def test_bad_seed() -> None:
    with pytest.raises(RequestError, match=r"seed: got 1\.5 of type float, expected an int"):
        brownian_noise((16,), 1.5, LOW, HIGH)  # type: ignore[arg-type]


def test_unknown_kind() -> None:
    with pytest.raises(RequestError, match=r"noise: got 'torch'; did you mean"):
        brownian_noise((16,), 0, LOW, HIGH, "torch")  # type: ignore[arg-type]


def test_root_is_the_draw_of_a_hashed_seed() -> None:
    """The increment over the whole range, by hand."""
    noise = brownian_noise((32,), 6, 0.5, 2.5)
    seed = int(np.random.SeedSequence(6, pool_size=24).generate_state(1)[0])
    drawn: NDArray[Any] = TorchCpuNoise(seed).normal((32,))
    np.testing.assert_allclose(noise(0.5, 2.5), drawn, rtol=1e-6)
