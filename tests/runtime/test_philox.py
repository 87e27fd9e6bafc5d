"""CUDA noise: known answers of Philox, and values that real GPUs printed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgediffusion.errors import RequestError
from edgediffusion.philox import REFERENCE_THREADS, TorchCudaNoise, philox4x32

A100, H100_PCIE = 108 * 2048, 114 * 2048

# Random123, tests/kat_vectors: counter, key, result.
KNOWN_ANSWERS = """
00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1
"""

# What GPUs printed, found in public repositories. torch.manual_seed(0), then
# torch.randn(8, 8, device="cuda"), from notes on Triton kernels (triton 2.2.0).
SEED_0 = [
    [-0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284],
    [-1.0745, -0.3631, -1.6711, 2.2655, 0.3117, -0.1842, 1.2866, 1.1820],
    [-0.1271, 1.2169, 1.4353, 1.0605, -0.4941, -1.4244, -0.7244, -1.2973],
    [0.0697, -0.0074, 1.8969, 0.6878, -0.0779, -0.8373, 1.3506, -0.2879],
    [-0.5965, -0.3283, -0.9086, -0.8059, -0.7407, -0.0504, 0.5435, 1.5150],
    [0.0141, 0.4532, 1.6349, 0.7124, -0.1806, 1.0252, -1.4622, -0.7554],
    [-0.1836, 0.3824, 0.3918, -0.0830, 0.8971, -1.1123, 0.1116, 0.4863],
    [-0.5499, -0.3231, -0.5469, 0.9049, 0.2837, 0.1210, 0.4730, -1.0823],
]
# Six calls of torch.randn(4, device="cuda") after torch.manual_seed(42), from a reproduction of a
# bug of torch._foreach_sub; the first is also in flashinfer's documentation, with the seed.
SEED_42 = [
    [0.1940, 2.1614, -0.1721, 0.8491],
    [0.1391, -0.1082, -0.7174, 0.7566],
    [-0.5187, 1.2268, 0.6255, -0.9117],
    [-0.6974, -1.8688, -0.8832, -1.6627],
    [-1.2682, -0.0383, -0.1029, 1.4400],
    [1.4640, -0.3238, 0.7740, 1.5892],
]
# Triton's tutorial 03: torch.manual_seed(0), a and b = torch.randn((512, 512), device="cuda",
# dtype=torch.float16), corners of a @ b. More values than the GPU has threads, so that some are
# second normals. From an A100-SXM4-40GB (torch 1.13.1); the second from a GPU that is not named,
# and which the number of threads gives away.
A100_PRODUCT = [
    [-10.9531, -4.7109, 15.6953, -28.4062, 4.3320, -26.4219],
    [26.8438, 10.0469, -5.4297, -11.2969, -8.5312, 30.7500],
    [-13.2578, 15.8516, 18.0781, -21.7656, -8.6406, 10.2031],
    [40.2812, 18.6094, -25.6094, -2.7598, -3.2441, 41.0000],
    [-6.1211, -16.8281, 4.4844, -21.0312, 24.7031, 15.0234],
    [-17.0938, -19.0000, -0.3831, 21.5469, -30.2344, -13.2188],
]
H100_PRODUCT = [-18.1719, -3.2539, 9.3984, -16.6719, 24.2031, -27.8438]


def product(threads: int) -> Any:
    """Corners of the product of two (512, 512) float16 draws of seed 0."""
    noise = TorchCudaNoise(0, threads)
    a, b = (noise.normal((512, 512)).astype(np.float16).astype(np.float32) for _ in range(2))
    corners = [0, 1, 2, -3, -2, -1]
    return (a[corners] @ b)[:, corners]


def words(text: str) -> Any:
    return tuple(np.array([int(word, 16)], np.uint32) for word in text.split())


@pytest.mark.parametrize("line", KNOWN_ANSWERS.strip().splitlines())
def test_known_answers(line: str) -> None:
    counter, key, expected = line.split("  ")
    low, high = (int(word, 16) for word in key.split())
    got = philox4x32(words(counter), (low, high))
    assert " ".join(f"{int(word[0]):08x}" for word in got) == expected


def test_known_values() -> None:
    drawn = TorchCudaNoise(0).normal((1, 4, 64, 64)).ravel()[:4]
    assert drawn == pytest.approx([-0.92466259, -0.42534415, -2.6438457, 0.14518388], abs=1e-6)


def test_equals_what_a_gpu_printed() -> None:
    np.testing.assert_allclose(TorchCudaNoise(0).normal((8, 8)), SEED_0, rtol=0, atol=5.1e-5)


def test_equals_what_a_gpu_printed_call_after_call() -> None:
    noise = TorchCudaNoise(42)
    for i, expected in enumerate(SEED_42):
        assert noise.offset == 4 * i
        np.testing.assert_allclose(noise.normal((4,)), expected, rtol=0, atol=5.1e-5)


def test_equals_what_gpus_computed_from_more_values_than_threads() -> None:
    # float16 output: half a unit in the last place at 32, and the sum over 512 products.
    np.testing.assert_allclose(product(A100), A100_PRODUCT, rtol=0, atol=0.02)
    np.testing.assert_allclose(product(H100_PCIE)[0], H100_PRODUCT, rtol=0, atol=0.02)


@settings(deadline=None)
@given(
    seed=st.integers(-(2**63), 2**64 - 1),
    sizes=st.lists(st.integers(0, 3000), max_size=4),
    blocks=st.integers(1, 3),
)
def test_each_value_comes_from_its_thread(seed: int, sizes: list[int], blocks: int) -> None:
    """The kernel's own loop, one thread and one value at a time, for some values of each draw."""
    noise = TorchCudaNoise(seed, 256 * blocks)
    step = 0
    for size in sizes:
        drawn = noise.normal((size,))
        grid = min(256 * blocks, -(-size // 256) * 256)
        for at in range(0, size, 97):
            normal = at // grid % 4
            block = words(f"{step + at // (4 * grid):x} 0 {at % grid:x} 0")
            got = philox4x32(block, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
            x, y = (int(word[0]) for word in got[normal // 2 * 2 : normal // 2 * 2 + 2])
            radius = np.sqrt(-2 * np.log((x + 0.5) / 2**32))
            wave = np.sin if normal % 2 == 0 else np.cos
            expected = radius * wave(2 * np.pi * (y + 0.5) / 2**32)
            # cuRAND rounds its inputs to float32, which is coarse where the radius is near 0.
            assert drawn[at] == pytest.approx(expected, abs=1e-3)
        step += -(-size // (4 * grid)) if size else 0
        assert noise.offset == 4 * step


@settings(deadline=None)
@given(seed=st.integers(0, 2**64 - 1), size=st.integers(0, 5000))
def test_is_shaped_finite_and_reproducible(seed: int, size: int) -> None:
    drawn = TorchCudaNoise(seed).normal((size, 1))
    assert drawn.shape == (size, 1)
    assert drawn.dtype == np.float32
    assert np.isfinite(drawn).all()
    np.testing.assert_array_equal(drawn, TorchCudaNoise(seed).normal((size, 1)))


def test_threads_do_not_matter_to_a_draw_that_fits() -> None:
    few, many = TorchCudaNoise(5, 16_384), TorchCudaNoise(5, REFERENCE_THREADS)
    np.testing.assert_array_equal(few.normal((16_384,)), many.normal((16_384,)))
    assert (few.normal((16_385,)) != many.normal((16_385,))).any()


def test_extreme_words_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    for word in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF):
        noise = TorchCudaNoise(0, 256)

        def all_alike(start: int, stop: int, word: int = word) -> Any:
            return (np.full(stop - start, word, np.uint32),) * 4

        monkeypatch.setattr(noise, "_words", all_alike)
        assert np.isfinite(noise.normal((1024,))).all()


def test_both_halves_of_a_seed_count() -> None:
    draws = [TorchCudaNoise(seed).normal((64,)) for seed in (1, 1 + 2**32, -1, 2**63)]
    assert len({draw.tobytes() for draw in draws}) == 4
    np.testing.assert_array_equal(draws[2], TorchCudaNoise(2**64 - 1).normal((64,)))


def test_is_normal() -> None:
    noise = TorchCudaNoise(11, 40_960)
    drawn = noise.normal((1_000_000,)).astype(np.float64)
    assert abs(drawn.mean()) < 4e-3
    assert abs(drawn.std() - 1) < 3e-3
    assert abs((drawn**4).mean() - 3) < 0.03


def test_bad_seed() -> None:
    with pytest.raises(RequestError, match=r"seed: got 1\.5 of type float, expected an int"):
        TorchCudaNoise(1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [0, -256, 100])
def test_bad_threads(threads: int) -> None:
    with pytest.raises(RequestError, match=r"threads: got .*, expected a multiple of 256; pass"):
        TorchCudaNoise(0, threads)


def test_negative_extent() -> None:
    with pytest.raises(RequestError, match=r"shape: got \(-1,\), expected extents >= 0"):
        TorchCudaNoise(0).normal((-1,))
