from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.contenders.protocol import Made, save
from benchmarks.sameness import (
    GATES,
    Picture,
    Work,
    compare,
    prediction_flags,
    prediction_l2,
    psnr_db,
    read_picture,
)

WORK = Work(size=(16, 24), batch=2, steps=4)


def picture(seed: int = 0) -> Picture:
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (2, 16, 24, 3), np.uint8)
    return Picture(pictures, rng.standard_normal((2, 4, 2, 3), np.float32), 4)


def test_the_same_picture_is_the_same() -> None:
    same = compare(picture(), picture(), WORK, "fp32")
    assert same == {
        "latents_l2": 0.0,
        "psnr_db": None,
        "identical": True,
        "picture_std": float(picture().pictures.std()),
        "flags": [],
    }


def test_known_distances() -> None:
    reference = picture()
    near = replace(reference, latents=reference.latents * np.float32(1.01))
    near.pictures[...] = np.where(reference.pictures < 128, reference.pictures, 127)
    bright = replace(near, pictures=near.pictures + np.uint8(1))
    same = compare(bright, near, WORK, "fp32")
    assert same["psnr_db"] == pytest.approx(20 * math.log10(255))
    assert compare(near, reference, WORK, "fp32")["latents_l2"] == pytest.approx(0.01, rel=1e-3)


def test_equal_pictures_have_no_finite_psnr() -> None:
    assert psnr_db(picture().pictures, picture().pictures) == math.inf


@pytest.mark.parametrize("precision", GATES)
def test_another_seed_is_other_work_in_any_arithmetic(precision: str) -> None:
    flags = compare(picture(1), picture(), WORK, precision)["flags"]
    assert any(flag.startswith("latents differ from the reference by 1.") for flag in flags)
    assert any(flag.startswith("PSNR to the reference 8 dB") for flag in flags)


def test_a_small_error_is_allowed_by_half_the_bits_only() -> None:
    reference = picture()
    near = replace(reference, latents=reference.latents * np.float32(1.1))
    assert compare(near, reference, WORK, "bf16")["flags"] == []
    (flag,) = compare(near, reference, WORK, "fp32")["flags"]
    assert flag == "latents differ from the reference by 0.1; fp32 allows 0.03"


@pytest.mark.parametrize(
    ("work", "flag"),
    [
        (replace(WORK, size=(16, 16)), "made pictures of 16x24, not 16x16"),
        (replace(WORK, batch=4), "made 2 pictures, not 4"),
        (replace(WORK, steps=20), "made 4 steps, not 20"),
    ],
)
def test_other_work_than_asked_for_is_flagged(work: Work, flag: str) -> None:
    assert compare(picture(), picture(), work, "fp32")["flags"] == [flag]


def test_pictures_with_an_alpha_channel_are_flagged() -> None:
    alpha = np.full((2, 16, 24, 1), 255, np.uint8)
    made = replace(picture(), pictures=np.concatenate([picture().pictures, alpha], axis=3))
    same = compare(made, picture(), WORK, "fp32")
    assert (same["psnr_db"], same["flags"]) == (None, ["made pictures of 4 channels, not 3"])


def test_a_flat_picture_proves_nothing() -> None:
    flat = replace(picture(), pictures=np.full((2, 16, 24, 3), 127, np.uint8))
    (flag,) = compare(flat, flat, WORK, "fp32")["flags"]
    assert flag == "the picture is flat: standard deviation 0.0 of 255"


def test_latents_that_are_not_numbers_are_flagged() -> None:
    broken = picture()
    assert broken.latents is not None
    broken.latents[0, 0] = np.nan
    same = compare(broken, picture(), WORK, "fp32")
    assert same["latents_l2"] == math.inf
    assert "the latents hold NaN or infinity" in same["flags"]


def test_latents_of_another_shape_are_infinitely_far() -> None:
    other = replace(picture(), latents=np.zeros((1, 4, 2, 3), np.float32))
    assert compare(other, picture(), WORK, "fp32")["latents_l2"] == math.inf


def test_a_prediction_is_held_to_the_gates_of_single_graphs() -> None:
    reference = np.full((2, 4, 2, 3), 2, np.float32)
    assert prediction_l2(reference * np.float32(1.01), reference) == pytest.approx(0.01, rel=1e-3)
    assert prediction_flags(0.01, "bf16") == []
    (flag,) = prediction_flags(0.01, "fp32")
    assert flag == "the UNet differs from the reference's by 0.01; fp32 allows 0.0001"


def test_predictions_that_cannot_be_compared() -> None:
    reference = np.ones((2, 4, 2, 3), np.float32)
    assert prediction_l2(reference[:1], reference) == math.inf
    assert prediction_l2(None, reference) is prediction_l2(reference, None) is None
    assert prediction_flags(None, "fp32") == []


def test_without_latents_the_pictures_are_compared() -> None:
    shown = replace(picture(), latents=None)
    same = compare(shown, picture(), WORK, "fp32")
    assert (same["latents_l2"], same["identical"], same["flags"]) == (None, True, [])


def test_without_a_reference_nothing_is_claimed() -> None:
    same = compare(picture(), None, WORK, "fp32")
    assert (same["latents_l2"], same["psnr_db"], same["identical"]) == (None, None, False)
    assert same["flags"] == ["there is no reference to compare with"]


@pytest.mark.parametrize("latents", [True, False])
def test_what_a_worker_saves_is_read_back(tmp_path: Path, latents: bool) -> None:
    made = picture()
    kept = made.latents if latents else None
    save(tmp_path / "a.npz", Made(made.pictures, kept, made.steps))
    read = read_picture(tmp_path / "a.npz")
    assert (read.steps, read.latents is None) == (4, not latents)
    np.testing.assert_array_equal(read.pictures, made.pictures)
