from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

import edgediffusion as ed
from edgediffusion.golden import relative_l2
from edgediffusion_export.tiling import tiled

Export = Callable[..., Path]


def predict(model: Any, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> Any:
    return model(sample, timestep, text, return_dict=False)[0]


def inputs(height: int = 8, width: int = 16) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    sample = torch.randn((2, 4, height, width), generator=draw)
    return sample, torch.tensor([300.0]), torch.randn((2, 5, 8), generator=draw)


def attending_from(depth: int) -> Any:
    """A UNet whose blocks attend from that depth on."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D",) * depth + ("CrossAttnDownBlock2D",) * (2 - depth),
        up_block_types=("CrossAttnUpBlock2D",) * (2 - depth) + ("UpBlock2D",) * depth,
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


@pytest.fixture(scope="module", params=[0, 1])
def model(request: pytest.FixtureRequest) -> Any:
    return attending_from(request.param)


@torch.no_grad()
def test_one_tile_is_the_networks_own_attention(model: Any) -> None:
    whole = predict(model, *inputs())
    assert torch.equal(tiled(predict, 1)(model, *inputs()), whole)


@torch.no_grad()
def test_tiles_change_a_little_and_leave_the_network_as_it_was(model: Any) -> None:
    whole = predict(model, *inputs())
    apart = tiled(predict, 2)(model, *inputs())
    assert 1e-6 < relative_l2(apart.numpy(), whole.numpy()) < 0.5
    assert torch.equal(predict(model, *inputs()), whole)


@torch.no_grad()
@pytest.mark.parametrize("depth", [0, 1])
def test_a_tile_attends_to_itself_alone(depth: int) -> None:
    """One layer by itself: what happens in one tile changes nothing in the others."""
    model = attending_from(depth)
    layer = model.down_blocks[depth].attentions[0].transformer_blocks[0].attn1
    height, width, channels = 8 >> depth, 16 >> depth, 8 << depth
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn((1, height * width, channels), generator=draw)
    other = hidden.reshape(height, width, channels).clone()
    other[: height // 2, width // 2 :] += 1  # the upper right one of 2 x 2 tiles

    def attend(model: Any, sample: torch.Tensor) -> Any:
        return layer(hidden), layer(other.reshape(1, -1, channels))

    before, after = tiled(attend, 2)(model, torch.zeros((1, 4, 8, 16)))
    changed = (before != after).any(dim=-1).reshape(height, width)
    assert changed[: height // 2, width // 2 :].all()
    assert changed.sum() == height * width // 4


def test_a_tiled_bundle_says_what_it_changes(
    checkpoint: Path, tiny_bundle: Path, tmp_path: Path, exporting: Export
) -> None:
    folder = exporting(checkpoint, tmp_path / "b", attention_tiles=2, deepcache=True, batches=(1,))
    bundle, plain = ed.Bundle.open(folder), ed.Bundle.open(tiny_bundle)
    graph = bundle.graph("unet", size=bundle.manifest.sizes[0])
    assert graph.note is not None
    assert "self-attention within 2x2 tiles: the outputs differ from the checkpoint's" in graph.note
    assert graph.parity.l2 <= 1e-4
    names = [set(each.manifest.components["unet"].tensors) for each in (bundle, plain)]
    assert names[0] == names[1]
    with ed.Pipeline.open(folder) as tiles, ed.Pipeline.open(tiny_bundle) as whole:
        request = ed.Request(prompt="a", steps=2, seed=0, guidance=1)
        assert relative_l2(tiles.generate(request).latents, whole.generate(request).latents) > 1e-5


def test_latents_that_do_not_divide_are_refused(
    checkpoint: Path, tmp_path: Path, exporting: Export
) -> None:
    with pytest.raises(ed.RequestError, match="cannot be cut into 5 tiles a side; use 2, or a"):
        exporting(checkpoint, tmp_path / "b", attention_tiles=5)


def test_a_network_that_attends_in_its_middle_only_is_refused(
    checkpoint: Path, tmp_path: Path, exporting: Export
) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    config = copy / "unet" / "config.json"
    text = config.read_text(encoding="utf-8")
    assert '"CrossAttnDownBlock2D"' in text
    config.write_text(text.replace("CrossAttnDownBlock2D", "DownBlock2D"), encoding="utf-8")
    with pytest.raises(ed.RequestError, match="has no block outside its middle that attends"):
        exporting(copy, tmp_path / "b", attention_tiles=2)
