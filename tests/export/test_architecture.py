from __future__ import annotations

from typing import Any

import pytest

from edgediffusion.errors import CheckpointError, RequestError
from edgediffusion_export.architecture import Architecture, check_size, read_architecture

UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
}
VAE = {"latent_channels": 4, "block_out_channels": [128, 256, 512, 512]}
TEXT = {"hidden_size": 768, "max_position_embeddings": 77, "num_hidden_layers": 12}


def architecture(**unet: Any) -> Architecture:
    return read_architecture(unet=UNET | unet, vae=VAE, text=TEXT, scheduler={})


def test_the_numbers_of_stable_diffusion() -> None:
    found = architecture()
    assert (found.channels, found.downsampling, found.granularity) == (4, 8, 64)
    assert found.default_size == (512, 512)
    assert (found.tokens, found.width, found.train_timesteps) == (77, 768, 1000)
    assert found.scaling_factor == pytest.approx(0.18215)
    assert found.shift_factor == 0


def test_a_unet_may_be_made_for_oblong_pictures() -> None:
    assert architecture(sample_size=[64, 96]).default_size == (512, 768)


@pytest.mark.parametrize("size", [(512, 512), (64, 1024)])
def test_good_sizes_pass(size: tuple[int, int]) -> None:
    check_size(size, architecture())


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        ((500, 512), "448x512 or 512x512"),
        ((512, 520), "512x512 or 512x576"),
        ((8, 8), "64x64"),
        ((0, 512), "64x512"),
    ],
)
def test_other_sizes_name_the_nearest(size: tuple[int, int], nearest: str) -> None:
    with pytest.raises(RequestError, match=f"multiples of 64 pixels, the nearest are {nearest}$"):
        check_size(size, architecture())


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        ({"in_channels": 9}, "in_channels 9, the VAE has 4 latent channels: inpainting"),
        ({"out_channels": 8}, "out_channels 8, the VAE has 4"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type 'text_time': this kind"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim 256: this kind"),
        ({"cross_attention_dim": 1024}, "cross_attention_dim 1024, the text encoder's .* 768"),
        ({"block_out_channels": []}, r"block_out_channels \[\], expected positive numbers"),
        ({"sample_size": None}, "sample_size None, expected positive numbers"),
        ({"in_channels": "4"}, "in_channels '4', expected positive numbers"),
    ],
)
def test_other_unets_are_refused(unet: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"unet/config.json has {message}"):
        architecture(**unet)
