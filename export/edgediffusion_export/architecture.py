"""What the configurations of a checkpoint say about the shapes of its graphs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgediffusion.errors import CheckpointError, RequestError
from edgediffusion.manifest import TEXT_ENCODERS

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
    "text_encoder_2": (
        "hidden_size",
        "max_position_embeddings",
        "num_hidden_layers",
        "projection_dim",
    ),
}
"""What shapes are made of, by configuration."""

FOREIGN: Final = (
    "class_embed_type",
    "time_cond_proj_dim",
    "encoder_hid_dim",
)
"""Options of a UNet that give it inputs of their own."""


TEXT_AND_SIZE: Final = "text_time"
"""The option of SDXL's UNet: it also takes the pooled text and six numbers about the size."""
SIZE_NUMBERS: Final = 6


@dataclass(frozen=True, kw_only=True)
class TextShape:
    """The shapes of a text encoder.

    width, pooled : numbers in a state, and in the one vector for a whole text.
    layers : of which it is made.
    """

    width: int
    pooled: int
    layers: int


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The numbers that static shapes, latent scaling and golden inputs are made of.

    downsampling : pixels of the picture per latent, along one side.
    granularity : a picture's sides must be multiples of this many pixels.
    attention_step : pixels for each place of the UNet's largest self-attention, along one side;
        None where only its middle attends, or nothing says which blocks do.
    default_size : (height, width) in pixels that the UNet was trained at.
    deep_channels : channels of the features that DeepCache keeps: those between the layers of the
        UNet's last up block.
    tokens : what the text encoders take.
    texts : the shapes of each, by its name; of two, the UNet takes the states side by side.
    train_timesteps : noise levels of the training schedule.
    """

    channels: int
    deep_channels: int
    downsampling: int
    granularity: int
    default_size: Size
    tokens: int
    texts: Mapping[str, TextShape]
    scaling_factor: float
    shift_factor: float
    train_timesteps: int
    attention_step: int | None = None

    @property
    def width(self) -> int:
        """Numbers in a text state, of all text encoders together."""
        return sum(text.width for text in self.texts.values())

    @property
    def pooled(self) -> int:
        """Numbers in the vector for a whole text that the UNet takes, if it does."""
        return list(self.texts.values())[-1].pooled


def read_architecture(configs: Mapping[str, Config], scheduler: Config) -> Architecture:
    """Derive the architecture from the networks' configurations, by folder.

    Raises CheckpointError for a kind of UNet that has other inputs.
    """
    _check_present(configs)
    texts = {name: _text_shape(configs[name]) for name in TEXT_ENCODERS if name in configs}
    unet, vae, text = (configs[name] for name in ("unet", "vae", "text_encoder"))
    _check_unet(unet, vae)
    _check_conditioning(unet, texts)
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
        texts=texts,
        scaling_factor=float(vae.get("scaling_factor") or 0.18215),
        shift_factor=float(vae.get("shift_factor") or 0.0),
        train_timesteps=int(scheduler.get("num_train_timesteps") or 1000),
        attention_step=_attention_step(unet, downsampling),
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
    """Raise RequestError unless the UNet's largest attention can be cut into so many a side."""
    if tiles == 1:
        return
    if architecture.attention_step is None:
        raise RequestError(
            "attention tiles: this UNet has no block outside its middle that attends: leave "
            "--attention-tiles out"
        )
    sides = tuple(side // architecture.attention_step for side in size)
    if any(side % tiles for side in sides):
        raise RequestError(
            f"attention tiles: in a picture of {size[0]}x{size[1]} the largest attention is over "
            f"{sides[0]}x{sides[1]} places, which cannot be cut into {tiles} tiles a side; use 2, "
            "or a size that divides"
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
    for part in configs:
        for field in NEEDED.get(part, ()):
            value = configs[part].get(field)
            numbers = value if isinstance(value, list) and value else [value]
            if not all(isinstance(n, int) and n > 0 for n in numbers):
                raise CheckpointError(
                    f"{part}/config.json has {field} {value!r}, expected positive numbers: the "
                    "file is damaged or of another kind of network"
                )


def _attention_step(unet: Config, downsampling: int) -> int | None:
    """Each block that downsamples, which is all but the last one, halves the sides."""
    kinds = unet.get("down_block_types")
    named = kinds if isinstance(kinds, list) else []
    depths = (depth for depth, kind in enumerate(named) if "CrossAttn" in str(kind))
    depth = next(depths, None)
    return None if depth is None else downsampling * 2**depth


def _text_shape(config: Config) -> TextShape:
    """A text encoder with a projection pools to its width, one without to its states'."""
    projects = (config.get("architectures") or [""])[0].endswith("WithProjection")
    width = config["hidden_size"]
    pooled = config["projection_dim"] if projects else width
    return TextShape(width=width, pooled=pooled, layers=config["num_hidden_layers"])


def _check_unet(unet: Config, vae: Config) -> None:
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
                "that Stable Diffusion 1, 2 and XL do not have, and is not supported"
            )
    for field in ("latents_mean", "latents_std"):
        if vae.get(field) is not None:
            raise CheckpointError(
                f"vae/config.json has {field}: latents that are shifted channel by channel are not "
                "supported"
            )


def _check_conditioning(unet: Config, texts: Mapping[str, TextShape]) -> None:
    """Refuse a UNet that does not take what these text encoders give."""
    width = sum(text.width for text in texts.values())
    if unet["cross_attention_dim"] != width:
        widths = " + ".join(str(text.width) for text in texts.values())
        raise CheckpointError(
            f"unet/config.json has cross_attention_dim {unet['cross_attention_dim']}, the "
            f"text encoder's hidden_size is {widths}: these parts do not belong together"
        )
    expected = TEXT_AND_SIZE if len(texts) > 1 else None
    if unet.get("addition_embed_type") != expected:
        raise CheckpointError(
            f"unet/config.json has addition_embed_type {unet.get('addition_embed_type')!r}, with "
            f"{len(texts)} text encoder(s) {expected!r} is expected: this kind of UNet is not "
            "supported"
        )
    if expected is None:
        return
    taken = unet.get("projection_class_embeddings_input_dim")
    sizes = SIZE_NUMBERS * (unet.get("addition_time_embed_dim") or 0)
    given = texts["text_encoder_2"].pooled + sizes
    if taken != given:
        raise CheckpointError(
            f"unet/config.json has projection_class_embeddings_input_dim {taken}, text_encoder_2 "
            f"and the picture's size make {given}: these parts do not belong together"
        )
