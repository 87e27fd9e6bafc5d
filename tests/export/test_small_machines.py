"""A bundle for small machines, end to end: decoder tiles, several sizes, the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgediffusion as ed
from benchmarks.sameness import psnr_db
from edgediffusion.cli import main
from edgediffusion.errors import RequestError
from edgediffusion.picture import request_from_png

REQUEST = ed.Request(prompt="a red circle", steps=2, seed=7)
TILED = ed.Request(prompt="a red circle", steps=2, seed=7, decoder_tile=(32, 32))
TALL = ed.Request(prompt="a red circle", steps=1, seed=7, size=(128, 64))


def test_a_picture_in_tiles_is_like_the_whole_one_and_not_equal(parts_bundle: Path) -> None:
    with ed.Pipeline.open(parts_bundle, device="cpu") as pipe:
        whole, tiled = pipe.generate(REQUEST), pipe.generate(TILED)
    assert tiled.latents.tobytes() == whole.latents.tobytes()
    assert tiled.images.shape == whole.images.shape
    assert 15 < psnr_db(tiled.images, whole.images) < 100
    assert tiled.request.decoder_tile == (32, 32)
    assert whole.request.decoder_tile is None


def test_a_tile_that_the_bundle_lacks_is_refused_with_those_it_has(parts_bundle: Path) -> None:
    with ed.Pipeline.open(parts_bundle, device="cpu") as pipe:
        with pytest.raises(
            RequestError, match=r"no vae_decoder graph for tiles of 16x16 in a pict"
        ):
            pipe.stream(ed.Request(decoder_tile=(16, 16)))
        with pytest.raises(RequestError, match=r"it has 32x32, 64x64, 128x64. Ask for one of"):
            pipe.stream(ed.Request(size=(128, 64), decoder_tile=(128, 128)))


def test_the_command_line_makes_a_picture_that_can_be_made_again(
    parts_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.png"
    options = ["--residency", "stream", "--decoder-tile", "32x32", "--device", "cpu"]
    command = ["generate", "a red circle", "-o", str(out), "--bundle", str(parts_bundle)]
    assert main([*command, "--steps", "2", "--seed", "7", *options]) == 0
    request = request_from_png(out)
    assert request.decoder_tile == (32, 32)
    with Image.open(out) as image, ed.Pipeline.open(parts_bundle, device="cpu") as pipe:
        assert psnr_db(np.asarray(image), pipe.generate(request).images[0]) > 60


def test_more_sizes_cost_next_to_no_disk(parts_bundle: Path, tiny_bundle: Path) -> None:
    """The graphs of a tiny network outweigh its weights, so the weights are counted alone."""
    many, one = ed.Bundle.open(parts_bundle).manifest, ed.Bundle.open(tiny_bundle).manifest
    assert (len(many.sizes), len(one.sizes)) == (2, 1)
    for name, component in many.components.items():
        stored = many.files[component.weights].size
        assert stored <= 1.05 * one.files[one.components[name].weights].size


def test_only_the_size_in_use_is_in_memory_and_switching_is_a_load(parts_bundle: Path) -> None:
    with ed.Pipeline.open(parts_bundle, device="cpu") as pipe:
        first = pipe.generate(REQUEST)
        assert "load" not in pipe.generate(REQUEST).timings.stages
        tall = pipe.generate(TALL)
        assert tall.images.shape == (1, 128, 64, 3)
        assert tall.timings.stages["load"] > 0
        assert {e.spec.size for e in pipe._residents._engines.values()} == {None, (128, 64)}
        assert pipe.generate(REQUEST).images.tobytes() == first.images.tobytes()


def test_a_size_that_the_bundle_lacks_is_refused_with_those_it_has(parts_bundle: Path) -> None:
    with (
        ed.Pipeline.open(parts_bundle) as pipe,
        pytest.raises(RequestError, match=r"no graphs for 64x128; it has 64x64, 128x64"),
    ):
        pipe.stream(ed.Request(size=(64, 128)))
