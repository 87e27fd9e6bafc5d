from __future__ import annotations

import numpy as np
import pytest

from edgediffusion.tiled_decoding import OVERLAP, decode_tiled, starts


def enlarge(latents: np.ndarray) -> np.ndarray:
    """A decoder that looks at single latents only: tiling it is exact."""
    return latents[:, :3].repeat(8, axis=2).repeat(8, axis=3)


@pytest.mark.parametrize(
    ("side", "tile"), [(64, 32), (96, 32), (64, 64), (65, 64), (40, 24), (9, 2)]
)
def test_tiles_cover_a_side_from_edge_to_edge_and_overlap(side: int, tile: int) -> None:
    begins = starts(side, tile)
    assert begins[0] == 0
    assert begins[-1] == side - tile
    steps = np.diff(begins)
    assert all(0 < step <= max(1, tile * (1 - OVERLAP)) for step in steps)


def test_no_more_tiles_than_needed() -> None:
    assert starts(32, 32) == (0,)
    assert starts(64, 32) == (0, 16, 32)
    assert starts(56, 32) == (0, 24)


@pytest.mark.parametrize("tile", [(8, 8), (8, 12), (6, 16), (16, 16), (5, 7)])
def test_a_local_decoder_is_tiled_exactly(tile: tuple[int, int]) -> None:
    latents = np.random.default_rng(0).standard_normal((4, 16, 16), np.float32)
    made = decode_tiled(enlarge, latents, tile)
    assert made.shape == (3, 128, 128)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, enlarge(latents[None])[0], rtol=1e-5, atol=1e-6)


def test_the_decoder_gets_tiles_of_its_own_shape() -> None:
    seen = []

    def decode(tile: np.ndarray) -> np.ndarray:
        seen.append(tile.shape)
        return enlarge(tile)

    decode_tiled(decode, np.zeros((4, 16, 20), np.float32), (8, 10))
    assert set(seen) == {(1, 4, 8, 10)}
    assert len(seen) == 9


def test_a_whole_picture_is_decoded_in_one_go_bit_for_bit() -> None:
    latents = np.random.default_rng(0).standard_normal((4, 8, 8), np.float32)
    made = decode_tiled(enlarge, latents, (8, 8))
    assert made.tobytes() == enlarge(latents[None])[0].tobytes()


def test_neighbours_give_way_to_each_other_linearly() -> None:
    """Tiles that disagree by 1 meet in a straight ramp, without a step at a seam."""
    count = iter(range(4))
    made = decode_tiled(
        lambda tile: np.full((1, 3, 64, 64), next(count) % 2, np.float32),
        np.zeros((4, 8, 14), np.float32),
        (8, 8),
    )
    ramp = made[0, 30]
    assert ramp[:48].tolist() == [0.0] * 48
    assert ramp[64:].tolist() == [1.0] * 48
    np.testing.assert_allclose(np.diff(ramp[48:64]), 1 / 17, rtol=1e-4)
