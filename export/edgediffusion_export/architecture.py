"""What the configurations of a checkpoint say about the shapes of its graphs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgediffusion.errors import CheckpointError, RequestError

Config = Mapping[str, Any]
Size = tuple[int, int]


NEEDED: Final = {
    "unet": (
        "sample_size",
        "in_channels",
        "out_channels",
        "block_out_channels",
        "cross_attention_dim",
    ),
    "vae": ("latent_channels", "block_out_channels"),
    "text_encoder": ("hidden_size", "max_position_embeddings", "num_hidden_layers"),
}
"""What shapes are made of, by configuration."""

FOREIGN: Final = (
    "class_embed_type",
    "addition_embed_type",
    "time_cond_proj_dim",
    "encoder_hid_dim",
)
"""Options of a UNet that give it inputs of their own."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The numbers that static shapes, latent scaling and golden inputs are made of.

    downsampling : pixels of the picture per latent, along one side.
    granularity : a picture's sides must be multiples of this many pixels.
    default_size : (height, width) in pixels that the UNet was trained at.
    deep_channels : channels of the features that DeepCache keeps: those between the layers of the
        UNet's last up block.
    tokens, width, text_layers : what the text encoder takes, gives, and is made of.
    train_timesteps : noise levels of the training schedule.
    """

    channels: int
    deep_channels: int
    downsampling: int
    granularity: int
    default_size: Size
    tokens: int
    width: int
    text_layers: int
    scaling_factor: float
    shift_factor: float
    train_timesteps: int


def read_architecture(
    *, unet: Config, vae: Config, text: Config, scheduler: Config
) -> Architecture:
    """Derive the architecture; raises CheckpointError for a kind of UNet that has other inputs."""
    _check_present({"unet": unet, "vae": vae, "text_encoder": text})
    _check_unet(unet, vae, text)
    downsampling = 2 ** (len(vae["block_out_channels"]) - 1)
    sample = unet["sample_size"]
    height, width = sample if isinstance(sample, list) else (sample, sample)
    return Architecture(
        channels=unet["in_channels"],
        deep_channels=unet["block_out_channels"][0],
        downsampling=downsampling,
        granularity=downsampling * 2 ** (len(unet["block_out_channels"]) - 1),
        default_size=(height * downsampling, width * downsampling),
        tokens=text["max_position_embeddings"],
        width=text["hidden_size"],
        text_layers=text["num_hidden_layers"],
        scaling_factor=float(vae.get("scaling_factor") or 0.18215),
        shift_factor=float(vae.get("shift_factor") or 0.0),
        train_timesteps=int(scheduler.get("num_train_timesteps") or 1000),
    )


def check_size(size: Size, architecture: Architecture) -> None:
    """Raise RequestError with the nearest valid size unless the networks can make this one."""
    step = architecture.granularity
    if min(size) > 0 and not any(side % step for side in size):
        return
    below = [max(step, side // step * step) for side in size]
    above = [max(step, -(-side // step) * step) for side in size]
    nearest = " or ".join(dict.fromkeys(f"{h}x{w}" for h, w in (below, above)))
    raise RequestError(
        f"size {size[0]}x{size[1]} does not fit this model: height and width must be multiples of "
        f"{step} pixels, the nearest are {nearest}"
    )


def check_tiles(size: Size, tiles: int, architecture: Architecture) -> None:
    """Raise RequestError unless the latents of a picture can be cut into that many tiles a side."""
    sides = tuple(side // architecture.downsampling for side in size)
    if any(side % tiles for side in sides):
        raise RequestError(
            f"attention tiles: a picture of {size[0]}x{size[1]} has {sides[0]}x{sides[1]} latents, "
            f"which cannot be cut into {tiles} tiles a side; use 2, or a size that divides"
        )


def check_decoder_tile(tile: Size, sizes: Iterable[Size], architecture: Architecture) -> None:
    """Raise RequestError unless a decoder's tile is made of latents and fits into every size."""
    step = architecture.downsampling
    if any(side < step or side % step for side in tile):
        raise RequestError(
            f"decoder tile {tile[0]}x{tile[1]}: height and width must be multiples of {step} pixels"
        )
    for size in sizes:
        if tile[0] > size[0] or tile[1] > size[1]:
            raise RequestError(
                f"decoder tile {tile[0]}x{tile[1]} is larger than the size {size[0]}x{size[1]}: "
                "leave it out, or choose one that fits into every --size"
            )


def _check_present(configs: Mapping[str, Config]) -> None:
    """Refuse configurations that lack a number, or hold something else in its place."""
    for part, fields in NEEDED.items():
        for field in fields:
            value = configs[part].get(field)
            numbers = value if isinstance(value, list) and value else [value]
            if not all(isinstance(n, int) and n > 0 for n in numbers):
                raise CheckpointError(
                    f"{part}/config.json has {field} {value!r}, expected positive numbers: the "
                    "file is damaged or of another kind of network"
                )


def _check_unet(unet: Config, vae: Config, text: Config) -> None:
    """Refuse what is no plain text-to-image UNet, by what its configuration says."""
    channels = vae["latent_channels"]
    for field in ("in_channels", "out_channels"):
        if unet[field] != channels:
            raise CheckpointError(
                f"unet/config.json has {field} {unet[field]}, the VAE has {channels} latent "
                "channels: inpainting, image-conditioned and learned-variance UNets are not "
                "supported, export a plain text-to-image checkpoint"
            )
    for field in FOREIGN:
        if unet.get(field) is not None:
            raise CheckpointError(
                f"unet/config.json has {field} {unet[field]!r}: this kind of UNet takes inputs "
                "that Stable Diffusion 1 and 2 do not have, and is not supported"
            )
    if unet["cross_attention_dim"] != text["hidden_size"]:
        raise CheckpointError(
            f"unet/config.json has cross_attention_dim {unet['cross_attention_dim']}, the "
            f"text encoder's hidden_size is {text['hidden_size']}: these parts do not belong "
            "together"
        )
