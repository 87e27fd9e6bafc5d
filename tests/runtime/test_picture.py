from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import edgediffusion as ed
from edgediffusion import files
from edgediffusion.files import write_atomically
from edgediffusion.image import preview_pixels, require_finite, require_picture, to_pixels
from edgediffusion.manifest import LatentSpec
from edgediffusion.picture import a1111_parameters

REQUEST = ed.Request(prompt="a cross\nof two\tlines: ümläut 🙂", negative="red", steps=2, seed=11)


@pytest.mark.parametrize("layout", ["per-image", "diffusers-batch"])
def test_a_png_carries_what_makes_it_again(pipe: ed.Pipeline, tmp_path: Path, layout: Any) -> None:
    asked = ed.Request(
        prompt="a cross", steps=2, seed=11, batch=2, sampler="euler_ancestral", noise_layout=layout
    )
    result = pipe.generate(asked)
    result.save(tmp_path / "second.png", 1)
    read = ed.request_from_png(tmp_path / "second.png")
    again = pipe.generate(read)
    index = 1 if layout == "diffusers-batch" else 0
    assert again.images[index].tobytes() == result.images[1].tobytes()


def test_the_pixels_survive(pipe: ed.Pipeline, tmp_path: Path) -> None:
    result = pipe.generate(REQUEST)
    result.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), result.images[0])
    assert ed.request_from_png(tmp_path / "a.png") == result.request


def test_the_same_run_writes_the_same_bytes(pipe: ed.Pipeline, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        pipe.generate(REQUEST).save(tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a1111_readers_find_their_words(pipe: ed.Pipeline, tmp_path: Path) -> None:
    asked = ed.Request(prompt="a cross", negative="red", steps=2, seed=3, sampler="dpmpp_2m")
    pipe.generate(asked).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        lines = image.info["parameters"].splitlines()
    assert lines[:2] == ["a cross", "Negative prompt: red"]
    assert lines[2].startswith("Steps: 2, Sampler: DPM++ 2M, CFG scale: ")
    assert ", Seed: 3, Size: 128x128, Model hash: " in lines[2]


def test_without_negative_prompt_there_is_no_such_line(pipe: ed.Pipeline) -> None:
    result = pipe.generate(ed.Request(prompt="a cross", steps=1, seed=3))
    assert "Negative" not in a1111_parameters(result.recipe())


def test_an_output_that_cannot_be_written(pipe: ed.Pipeline, tmp_path: Path) -> None:
    result = pipe.generate(ed.Request(steps=1, seed=1))
    with pytest.raises(ed.OutputError, match=r"out\.png cannot be written: No such file"):
        result.save(tmp_path / "missing" / "out.png")


def test_no_space_left_keeps_the_old_file(
    pipe: ed.Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    result = pipe.generate(ed.Request(steps=1, seed=1))
    (tmp_path / "out.png").write_bytes(b"old")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ed.OutputError, match=r"No space left on device.* or make room there"):
        result.save(tmp_path / "out.png")
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]
    assert (tmp_path / "out.png").read_bytes() == b"old"


def test_pictures_of_others_carry_no_recipe(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    with pytest.raises(ed.RequestError, match="carries no recipe: edgediffusion did not make it"):
        ed.request_from_png(tmp_path / "other.png")


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("hello")
    with pytest.raises(ed.RequestError, match="is not a readable PNG picture"):
        ed.request_from_png(tmp_path / "x.png")
    with pytest.raises(ed.RequestError, match=r"y\.png does not exist"):
        ed.request_from_png(tmp_path / "y.png")


def test_pixels_are_diffusers_arithmetic() -> None:
    decoded = np.array([-2, -1, 0, 0.5, 1, 3], np.float32).reshape(1, 1, 1, 6).repeat(3, axis=1)
    assert to_pixels(decoded)[0, 0, :, 0].tolist() == [0, 0, 128, 191, 255, 255]
    assert to_pixels(decoded).shape == (1, 1, 6, 3)


def test_a_preview_is_the_linear_fit() -> None:
    spec = LatentSpec(2, 8, 1.0, 0.0, ((1.0, 0.0, 0.0), (0.0, 0.5, -9.0)), (0.0, 0.0, 1.0))
    latents = np.array([0.2, 1.0], np.float32).reshape(1, 2, 1, 1)
    assert preview_pixels(latents, spec).tolist() == [[[[51, 128, 0]]]]


@given(at=st.integers(0, 99), value=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_one_bad_value_among_many_is_found(at: int, value: float) -> None:
    array = np.zeros(100, np.float32)
    require_finite(array, "unet", "here")
    array[at] = value
    with pytest.raises(ed.NumericalError, match="unet computed NaN or infinity here"):
        require_finite(array, "unet", "here")


def test_a_picture_with_two_colours_is_not_flat() -> None:
    pixels = np.full((1, 4, 4, 3), 200, np.uint8)
    with pytest.raises(ed.NumericalError, match="one flat colour"):
        require_picture(pixels, "vae_decoder")
    pixels[0, 0, 0, 0] = 100
    require_picture(pixels, "vae_decoder")


def test_an_atomic_write_gives_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    write_atomically(tmp_path / "ours", b"content")
    assert (tmp_path / "ours").read_bytes() == b"content"
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode
