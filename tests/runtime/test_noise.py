"""Noise equals torch.randn bit for bit: golden values, then torch itself where it is installed."""

from __future__ import annotations

import hashlib
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

from edgediffusion.errors import RequestError
from edgediffusion.noise import BatchNoise, Precision, TorchCpuNoise, noise_source, randn
from edgediffusion.philox import TorchCudaNoise

GOLDEN = Path(__file__).parents[1] / "golden" / "noise.safetensors"
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="compares against torch")

seeds = st.integers(-(2**63), 2**64 - 1)
shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)
precisions = st.sampled_from(("float32", "float16", "bfloat16"))


def bits(values: NDArray[Any]) -> NDArray[Any]:
    """The values' bit patterns: a comparison that tells -0 from 0 and knows no tolerance."""
    return values.view(np.uint32 if values.dtype == np.float32 else np.uint16)


def torch_generator(seed: int) -> Any:
    """A torch generator that draws the bits that we promise, or skip."""
    torch = pytest.importorskip("torch")
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this torch draws without AVX2")
    return torch.Generator().manual_seed(seed)


def test_known_values() -> None:
    assert randn((5,), 0) == pytest.approx(
        [1.5409961, -0.2934289, -2.1787894, 0.56843126, -1.0845224], abs=1e-7
    )
    first = randn((1, 4, 64, 64), seed=0).ravel()[:4]
    assert [f"{word:08x}" for word in bits(first)] == [
        "bf901b85",
        "bf93808a",
        "be804bd6",
        "bede255d",
    ]


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_golden_draws(precision: Precision) -> None:
    with safe_open(GOLDEN, framework="numpy") as golden:
        for seed, drawn in json.loads(golden.metadata()["sequences"]).items():
            noise = TorchCpuNoise(int(seed))
            for i, shape in enumerate(drawn):
                name = f"{precision}/{seed}/{i}"
                np.testing.assert_array_equal(
                    bits(noise.normal(tuple(shape), precision)), bits(golden.get_tensor(name)), name
                )


def test_golden_hashes_of_long_draws() -> None:
    with safe_open(GOLDEN, framework="numpy") as golden:
        hashes = json.loads(golden.metadata()["sha256"])
    assert len(hashes) == 9
    for name, expected in hashes.items():
        precision, seed, count = name.split("/")
        values = randn((int(count),), int(seed), precision).astype("<f4")
        assert hashlib.sha256(values.tobytes()).hexdigest() == expected, name


@needs_torch
@pytest.mark.parametrize("seed", [0, 1, 42, 2**32 - 1, 2**33 + 5, 2**64 - 1, -(2**63)])
def test_equals_torch_over_millions_of_values(seed: int) -> None:
    import torch

    generator, noise = torch_generator(seed), TorchCpuNoise(seed)
    sizes = [786_432, 3, 65_536, 17, 5, 31, 100_003, 1, 16, 15, 48, 7]
    for size in sizes:
        expected = torch.randn(size, generator=generator).numpy()
        np.testing.assert_array_equal(bits(noise.normal((size,))), bits(expected))


@needs_torch
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("seed", [0, 2**33 + 5])
def test_half_precisions_equal_torch_over_a_million_values(seed: int, precision: Precision) -> None:
    import torch

    generator, noise = torch_generator(seed), TorchCpuNoise(seed)
    for size in [524_288, 3, 16_384, 17, 5, 31, 100_003, 1, 16, 15, 48, 7]:
        drawn = torch.randn(size, generator=generator, dtype=getattr(torch, precision))
        expected = drawn.float().numpy()
        np.testing.assert_array_equal(bits(noise.normal((size,), precision)), bits(expected))


@needs_torch
@settings(deadline=None, max_examples=150)
@given(seed=seeds, drawn=st.lists(st.tuples(shapes, precisions), max_size=8))
def test_equals_torch_in_any_sequence(
    seed: int, drawn: list[tuple[tuple[int, ...], Precision]]
) -> None:
    import torch

    generator, noise = torch_generator(seed), TorchCpuNoise(seed)
    for shape, precision in drawn:
        expected = torch.randn(shape, generator=generator, dtype=getattr(torch, precision))
        got = noise.normal(shape, precision)
        np.testing.assert_array_equal(bits(got), bits(expected.float().numpy()))


@needs_torch
@pytest.mark.parametrize("size", [9, 17, 64, 65_536])
def test_dtypes_equal_torch(size: int) -> None:
    import torch

    half = torch.randn(size, generator=torch_generator(3), dtype=torch.float16).numpy()
    drawn = randn((size,), 3, np.float16)
    assert drawn.dtype == np.float16
    np.testing.assert_array_equal(bits(drawn), bits(half))
    brain = torch.randn(size, generator=torch_generator(3), dtype=torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(bits(randn((size,), 3, "bfloat16")), bits(brain))


@settings(deadline=None)
@given(seed=seeds, blocks=st.integers(1, 40))
def test_half_precisions_of_whole_blocks_are_the_rounded_draw(seed: int, blocks: int) -> None:
    shape = (16 * blocks,)
    wide = randn(shape, seed)
    np.testing.assert_array_equal(randn(shape, seed, np.float16), wide.astype(np.float16))
    brain = randn(shape, seed, "bfloat16")
    assert brain.dtype == np.float32
    assert not (brain.view(np.uint32) & 0xFFFF).any()  # a bfloat16 has no lower half
    np.testing.assert_allclose(brain, wide, rtol=2**-8)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (3, 5), (3, 17)])
def test_a_list_of_seeds_is_one_per_image(shape: tuple[int, ...], dtype: Precision) -> None:
    batch = randn(shape, [7, 0, 2**40], dtype)
    for image, seed in zip(batch, [7, 0, 2**40], strict=True):
        np.testing.assert_array_equal(image, randn((1, *shape[1:]), seed, dtype)[0])


@needs_torch
@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (3, 2, 2)])
def test_batch_equals_diffusers_with_a_list_of_generators(shape: tuple[int, ...]) -> None:
    import torch

    generators = [torch_generator(seed) for seed in (7, 0, 2**40)]
    noise = noise_source([7, 0, 2**40])
    for _ in range(3):  # the initial latents, then fresh noise
        rows = [torch.randn((1, *shape[1:]), generator=each) for each in generators]
        np.testing.assert_array_equal(bits(noise(shape)), bits(torch.cat(rows).numpy()))


@settings(deadline=None)
@given(seed=seeds, blocks=st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_whole_blocks_are_one_stream(seed: int, blocks: list[int]) -> None:
    noise = TorchCpuNoise(seed)
    parts = np.concatenate([noise.normal((16 * count,)) for count in blocks])
    np.testing.assert_array_equal(parts, randn((16 * sum(blocks),), seed))


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), high=st.integers(0, 2**32 - 1), shape=shapes)
def test_only_the_low_half_of_a_seed_counts(seed: int, high: int, shape: tuple[int, ...]) -> None:
    np.testing.assert_array_equal(randn(shape, seed), randn(shape, seed + (high << 32)))


@settings(deadline=None)
@given(seed=seeds, shape=shapes)
def test_is_finite_shaped_and_reproducible(seed: int, shape: tuple[int, ...]) -> None:
    drawn = randn(shape, seed)
    assert drawn.shape == shape
    assert drawn.dtype == np.float32
    assert np.isfinite(drawn).all()
    np.testing.assert_array_equal(drawn, randn(shape, seed))


def test_extreme_words_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    for word in (0, 0xFFFFFF, 0xFFFFFFFF):
        noise = TorchCpuNoise(0)
        monkeypatch.setattr(noise, "_words", lambda n, w=word: np.full(n, w, np.uint32))
        assert np.isfinite(noise.normal((32,))).all()
        assert np.isfinite(noise.normal((3,))).all()


def test_is_normal() -> None:
    drawn = randn((1_000_000,), 11).astype(np.float64)
    assert abs(drawn.mean()) < 4e-3
    assert abs(drawn.std() - 1) < 3e-3
    assert abs((drawn**4).mean() - 3) < 0.03


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    batch = noise_source([3, 4, 5])
    single = noise_source([4])
    for _ in range(2):
        np.testing.assert_array_equal(batch((3, 4, 8, 8))[1:2], single((1, 4, 8, 8)))


def test_the_diffusers_layout_draws_the_batch_as_one() -> None:
    noise = noise_source([3, 4], "diffusers-batch")
    one = TorchCpuNoise(3)
    for _ in range(2):
        np.testing.assert_array_equal(noise((2, 4, 8, 8)), one.normal((2, 4, 8, 8)))


@pytest.mark.parametrize("layout", ["per-image", "diffusers-batch"])
def test_the_kind_of_noise_is_chosen_by_name(layout: Any) -> None:
    cpu, cuda = (noise_source([3, 4], layout, kind) for kind in ("torch-cpu", "torch-cuda"))
    np.testing.assert_array_equal(cpu((2, 8, 8)), noise_source([3, 4], layout)((2, 8, 8)))
    first = (1, 8, 8) if layout == "per-image" else (2, 8, 8)
    one = TorchCudaNoise(3)
    for _ in range(2):
        np.testing.assert_array_equal(cuda((2, 8, 8))[: first[0]], one.normal(first))


def test_any_stream_makes_batch_noise() -> None:
    def constant(seed: int) -> Any:
        return lambda shape: np.full(shape, seed, np.float32)

    np.testing.assert_array_equal(BatchNoise([3, 4], constant)((2, 1)), [[3], [4]])


def test_numpy_integers_are_seeds() -> None:
    seed: Any = np.int64(7)
    np.testing.assert_array_equal(randn((16,), seed), randn((16,), 7))


@pytest.mark.parametrize("seed", [1.0, "7", None, True])
def test_seed_of_another_type(seed: Any) -> None:
    with pytest.raises(RequestError, match=r"seed: got .* of type .*, expected an int; pass"):
        randn((4,), seed)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(RequestError, match=r"expected -2\*\*63 <= seed < 2\*\*64; pass seed %"):
        TorchCpuNoise(seed)


@pytest.mark.parametrize(
    ("dtype", "name"), [(np.float64, "float64"), (np.int32, "int32"), ("nonsense", "'nonsense'")]
)
def test_dtype_that_is_not_drawn(dtype: Any, name: str) -> None:
    with pytest.raises(RequestError, match=rf"got {name}, expected float32, float16 or 'bfloat16'"):
        randn((4,), 0, dtype)


def test_negative_extent() -> None:
    with pytest.raises(RequestError, match=r"shape: got \(-1,\), expected extents >= 0"):
        randn((-1,), 0)


def test_batch_without_seeds() -> None:
    with pytest.raises(RequestError, match="seeds: got none, expected one per image"):
        noise_source([])


@pytest.mark.parametrize("shape", [(3, 4), ()])
def test_batch_of_another_length(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=r"for 2 seed\(s\), expected the batch first"):
        BatchNoise([1, 2])(shape)


def test_unknown_kind() -> None:
    with pytest.raises(RequestError, match=r"noise: got 'cuda'; did you mean torch-cuda"):
        noise_source([1], kind="cuda")  # type: ignore[arg-type]


def test_unknown_layout() -> None:
    with pytest.raises(RequestError, match="did you mean per-image"):
        noise_source([1], "per_image")  # type: ignore[arg-type]
