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
    return read_architecture({"unet": UNET | unet, "vae": VAE, "text_encoder": TEXT}, {})


def test_the_numbers_of_stable_diffusion() -> None:
    found = architecture()
    assert (found.channels, found.downsampling, found.granularity) == (4, 8, 64)
    assert found.default_size == (512, 512)
    assert (found.tokens, found.width, found.train_timesteps) == (77, 768, 1000)
    assert found.scaling_factor == pytest.approx(0.18215)
    assert found.shift_factor == 0


@pytest.mark.parametrize(
    ("kinds", "step"),
    [
        (["CrossAttnDownBlock2D", "DownBlock2D"], 8),
        (["DownBlock2D", "CrossAttnDownBlock2D"], 16),
        (["DownBlock2D", "DownBlock2D"], None),
        (None, None),
        (7, None),
        ([7, "CrossAttnDownBlock2D"], 16),
    ],
)
def test_the_largest_attention_is_where_the_first_block_attends(
    kinds: object, step: int | None
) -> None:
    assert architecture(down_block_types=kinds).attention_step == step


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
        ({"addition_embed_type": "text_time"}, "addition_embed_type 'text_time', with 1 text enc"),
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


TEXT_2 = {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_size": 1280,
    "max_position_embeddings": 77,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
}


def xl(**unet: Any) -> Architecture:
    texts = {"text_encoder": TEXT, "text_encoder_2": TEXT_2}
    return read_architecture({"unet": UNET | XL | unet, "vae": VAE, **texts}, {})


def test_the_numbers_of_sdxl() -> None:
    found = xl()
    assert (found.width, found.pooled, found.default_size) == (2048, 1280, (1024, 1024))
    assert found.texts["text_encoder"].layers == 12
    assert found.texts["text_encoder_2"].layers == 32
    assert found.granularity == 32


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        ({"addition_embed_type": None}, "addition_embed_type None, with 2 text encoder"),
        ({"addition_embed_type": "image"}, "addition_embed_type 'image', with 2 text encoder"),
        ({"cross_attention_dim": 768}, r"cross_attention_dim 768, the .* is 768 \+ 1280: these"),
        (
            {"projection_class_embeddings_input_dim": 2560},
            "projection_class_embeddings_input_dim 2560, text_encoder_2 and .* make 2816: these",
        ),
        (
            {"addition_time_embed_dim": None},
            "projection_class_embeddings_input_dim 2816, text_encoder_2 and .* make 1280",
        ),
    ],
)
def test_other_unets_than_sdxls_are_refused(unet: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"unet/config.json has {message}"):
        xl(**unet)


def test_latents_shifted_channel_by_channel_are_refused() -> None:
    vae = VAE | {"latents_mean": [0.0] * 4}
    with pytest.raises(CheckpointError, match=r"vae/config.json has latents_mean: latents that"):
        read_architecture({"unet": UNET, "vae": vae, "text_encoder": TEXT}, {})
