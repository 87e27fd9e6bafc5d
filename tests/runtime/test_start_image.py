from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgediffusion as ed
from edgediffusion.request import plan_request, request_from_recipe
from edgediffusion.start_image import read_start

SIZE = (128, 128)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "start.png")
    return tmp_path / "start.png"


def test_a_file_and_its_pixels_make_the_same_picture(pipe: ed.Pipeline, picture: Path) -> None:
    pixels = np.asarray(Image.open(picture))
    asked: dict[str, Any] = {"prompt": "a red circle", "steps": 4, "seed": 1, "strength": 0.5}
    file = pipe.generate(ed.Request(image=picture, **asked))
    array = pipe.generate(ed.Request(image=pixels, **asked))
    assert (file.images == array.images).all()
    assert "vae_encoder" in file.timings.stages
    plain = pipe.generate(ed.Request(**asked | {"strength": None}))
    assert (plain.images != file.images).any()


def test_the_recipe_names_the_file_and_makes_the_picture_again(
    pipe: ed.Pipeline, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pipe.generate(ed.Request(prompt="a", steps=3, seed=1, image=picture))
    made.save(picture.parent / "out.png")
    request = ed.request_from_png(picture.parent / "out.png")
    assert request.strength == 0.8
    monkeypatch.chdir(picture.parent)  # the recipe keeps no folder
    assert (pipe.generate(request).images == made.images).all()
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(picture)
    with pytest.raises(ed.RequestError, match=r"expected .*: it is another picture of the same"):
        pipe.stream(request)


def test_an_array_is_not_in_the_recipe(pipe: ed.Pipeline) -> None:
    grey = np.full((*SIZE, 3), 128, np.uint8)
    made = pipe.generate(ed.Request(prompt="a", steps=2, seed=1, image=grey))
    with pytest.raises(ed.RequestError, match="began from an array, which it does not hold"):
        request_from_recipe(made.recipe()["request"])


def test_a_picture_of_the_same_shape_is_scaled(picture: Path) -> None:
    start = read_start(picture, 0.5, (64, 64))
    assert start.pixels.shape == (64, 64, 3)
    assert start.pixels.dtype == np.uint8


def test_a_picture_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera's word for: turn me clockwise
    Image.fromarray(pixels).save(tmp_path / "side.png", exif=exif)
    start = read_start(tmp_path / "side.png", 0.5, (64, 32))
    assert start.pixels[:32].min() == 255
    assert start.pixels[32:].max() == 0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"strength": 0.5}, "strength is for image to image: pass image=, too"),
        ({"image": "missing.png"}, "image: missing.png cannot be read: No such file"),
        ({"image": __file__}, "image: .* is not a readable picture"),
        ({"image": np.zeros((128, 128), np.uint8)}, r"image: got uint8 of shape \(128, 128\)"),
        ({"image": np.zeros((128, 128, 3))}, "image: got float64 of shape"),
        (
            {"image": np.zeros((64, 128, 3), np.uint8)},
            "image: 64x128 has not the shape of the run's 128x128: crop it",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(demo: Path, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ed.RequestError, match=message):
        plan_request(ed.Request(**asked), ed.Bundle.open(demo))


@pytest.mark.parametrize("strength", [0, 1.5, "all"])
def test_a_strength_that_makes_no_sense(pipe: ed.Pipeline, picture: Path, strength: Any) -> None:
    with pytest.raises(ed.RequestError, match=re.escape(f"strength: got {strength!r}, expected")):
        pipe.stream(ed.Request(image=picture, strength=strength))


def test_a_bundle_without_an_encoder_says_so(demo: Path, picture: Path) -> None:
    bundle = ed.Bundle.open(demo)
    bundle.manifest.components.pop("vae_encoder")
    with pytest.raises(ed.RequestError, match="has no VAE encoder, which image needs: export it"):
        plan_request(ed.Request(image=picture), bundle)
