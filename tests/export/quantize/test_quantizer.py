from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgediffusion.errors import RequestError
from edgediffusion_export.quantize.quantizer import measure_layers, read_prompts
from edgediffusion_export.quantize.readings import Reading, Readings, reading
from edgediffusion_export.quantize.sensitivity import keep_in_float
from edgediffusion_export.quantize.smoothing import folds, smooth
from edgediffusion_export.quantize.trajectories import Moment, predict
from edgediffusion_export.source import open_checkpoint


@pytest.fixture(scope="module")
def unet(checkpoint: Path) -> torch.nn.Module:
    return open_checkpoint(str(checkpoint), None).load("unet")


@pytest.fixture(scope="module")
def moments() -> list[Moment]:
    generator = torch.Generator().manual_seed(3)
    return [
        Moment(
            torch.randn(2, 4, 8, 8, generator=generator),
            torch.tensor([timestep]),
            (torch.randn(2, 77, 32, generator=generator),),
        )
        for timestep in (900.0, 500.0, 20.0)
    ]


@pytest.fixture
def seen(unet: torch.nn.Module, moments: list[Moment]) -> tuple[Any, Readings]:
    """A copy of the UNet and what its layers met."""
    own, readings = copy.deepcopy(unet), Readings()
    with reading(own, readings):
        for moment in moments:
            predict(own, moment)
    return own, readings


def test_smoothing_changes_no_output_and_evens_the_inputs_out(
    seen: tuple[Any, Readings], moments: list[Moment]
) -> None:
    unet, readings = seen
    norm = unet.down_blocks[0].attentions[0].transformer_blocks[0].norm1
    norm.weight.data[3] *= 100  # an outlier, as large models have them
    readings.clear()
    with reading(unet, readings):
        wanted = [predict(unet, moment) for moment in moments]
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    before = readings[name].input.peaks()
    changed = smooth(unet, readings)
    for moment, want in zip(moments, wanted, strict=True):
        torch.testing.assert_close(predict(unet, moment), want, rtol=1e-4, atol=1e-5)
    after = readings[name].input.peaks()
    assert after.max() / np.median(after) < before.max() / np.median(before) / 4
    assert f"{name}.weight" in changed
    assert len(list(folds(unet))) == 6 * sum(
        type(module).__name__ == "BasicTransformerBlock" for module in unet.modules()
    )
    fresh = Readings()
    with reading(unet, fresh):
        predict(unet, moments[0])
    assert (fresh[name].input.peaks() <= after * 1.001).all()


def test_every_layer_has_an_error_of_its_own(
    seen: tuple[Any, Readings], moments: list[Moment]
) -> None:
    unet, readings = seen
    before = predict(unet, moments[0])
    layers = measure_layers(unet, readings, moments[:2], 127)
    reduced = measure_layers(unet, readings, moments[:2], 63)
    assert torch.equal(predict(unet, moments[0]), before), "the network is as it was"
    assert all(0 < layer.error < 0.1 for layer in layers)
    assert sum(layer.error**2 for layer in reduced) > sum(layer.error**2 for layer in layers)
    assert len(layers) == len(readings) - sum(not r.input.samples for r in readings.values())


def test_what_costs_most_for_its_work_stays_float() -> None:
    errors = {"cheap": 0.1, "large": 0.2, "good": 0.001}
    work = {"cheap": 5, "large": 60, "good": 35}
    assert keep_in_float(errors, work) == {"cheap"}


def test_a_grid_clips_a_rare_outlier() -> None:
    values = np.random.default_rng(0).normal(size=(40_000, 8)).astype(np.float32)
    values[17, 3] = 40
    found = Reading()
    found.add(torch.from_numpy(values), -1)
    assert found.peaks()[3] == 40
    found.samples = [values]
    grid = found.grid()
    assert grid.scale * 255 < 36, "the whole range is 44"
    whole = Reading(found.low, found.high, [np.clip(values, -2, 2) * 20]).grid()
    assert whole.scale * 255 > 40, "where the values fill it, it is taken"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read as a text file of prompts \(.*pass --calibrate FILE"),
        (b"\xff\xfe\xfa", "cannot be read as a text file of prompts"),
        (b"\n  \n", "has no prompts to calibrate with: write one a line"),
    ],
)
def test_a_file_without_prompts_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RequestError, match=message):
        read_prompts(file)


def test_prompts_are_lines(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(" a cat \n\na dog\n", encoding="utf-8")
    assert read_prompts(file) == ["a cat", "a dog"]
