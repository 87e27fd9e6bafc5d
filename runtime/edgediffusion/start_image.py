"""Image to image: the picture to begin from, read, checked and brought into the latents."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediffusion.bundle import say_size
from edgediffusion.engine import Engine
from edgediffusion.errors import RequestError
from edgediffusion.files import bare_name
from edgediffusion.image import Float, Pixels, require_finite
from edgediffusion.manifest import LatentSpec
from edgediffusion.noise import NoiseSource


@dataclass(frozen=True)
class StartImage:
    """A picture file to begin from.

    file : any format that Pillow reads.
    sha256 : of the file, which must have it then; None takes any.
    """

    file: str | os.PathLike[str]
    sha256: str | None = None


ImageLike = StartImage | str | os.PathLike[str] | NDArray[np.uint8]


@dataclass(frozen=True)
class Start:
    """A picture to begin from as a run needs it.

    pixels : uint8 array of shape (height, width, 3), at the size of the run.
    origin : what it was made from; a file with its hash.
    strength : how much of the run's noise it is laid under, above 0 to 1.
    """

    pixels: Pixels
    origin: StartImage | NDArray[np.uint8]
    strength: float


def read_start(image: ImageLike, strength: float, size: tuple[int, int]) -> Start:
    """Read a picture and scale it to ``size``, (height, width).

    Raises RequestError for a file that is missing, damaged or another one than its hash says, an
    array that is no picture, and for a picture of another shape than the run's: how to crop it is
    not ours to guess.
    """
    if isinstance(image, np.ndarray):
        return Start(_scaled(_checked(image), size), image, strength)
    wanted = image if isinstance(image, StartImage) else StartImage(image)
    pixels, digest = _read(wanted)
    return Start(_scaled(pixels, size), StartImage(wanted.file, digest), strength)


def encode_start(
    start: Start, engine: Engine, latent: LatentSpec, noise: NoiseSource, draws: int
) -> Float:
    """Encode a picture with the VAE, and draw from what the encoder says of it, as diffusers does.

    engine : the graph ``vae_encoder``; it gives mean and logarithm of the variance.
    draws : how many latents to draw from the one picture.

    Returns float32 latents of shape (draws, channels, h, w), scaled for the UNet.
    """
    unit = start.pixels.transpose(2, 0, 1)[np.newaxis].astype(np.float32) / np.float32(255)
    dtype = engine.spec.inputs[0].dtype
    moments = engine(sample=(2 * unit - 1).astype(dtype))["latent_parameters"].astype(np.float32)
    require_finite(moments, "vae_encoder", "from the picture to begin from")
    mean, log_variance = np.split(moments, 2, axis=1)
    deviation = np.exp(np.float32(0.5) * np.clip(log_variance, -30, 20))
    drawn = mean + deviation * noise((draws, *mean.shape[1:]))
    scaled: Float = (drawn - np.float32(latent.shift_factor)) * np.float32(latent.scaling_factor)
    return scaled


def start_entry(image: ImageLike | None) -> dict[str, str] | None:
    """Name a picture in a recipe by file name and hash, an array by the hash of its bytes."""
    if image is None:
        return None
    if isinstance(image, np.ndarray):
        return {"sha256": sha256(np.ascontiguousarray(image).tobytes()).hexdigest()}
    assert isinstance(image, StartImage), "a result's request has it filled in"
    return {"file": os.path.basename(image.file), "sha256": str(image.sha256)}


def start_from_recipe(entry: Mapping[str, str] | None) -> StartImage | None:
    """Read what ``start_entry`` wrote; a stranger's picture chooses no folder to look in.

    Raises RequestError where the picture was an array, which a recipe does not hold.
    """
    if entry is None:
        return None
    if "file" not in entry:
        raise RequestError(
            "the recipe began from an array, which it does not hold: pass image= once more"
        )
    return StartImage(bare_name(entry["file"]), entry["sha256"])


def _read(wanted: StartImage) -> tuple[Pixels, str]:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        data = Path(wanted.file).read_bytes()
    except OSError as error:
        raise RequestError(
            f"image: {wanted.file} cannot be read: {error.strerror or error}"
        ) from error
    digest = sha256(data).hexdigest()
    if wanted.sha256 not in (None, digest):
        raise RequestError(
            f"image: {wanted.file} has sha256 {digest[:12]}…, expected "
            f"{str(wanted.sha256)[:12]}…: it is another picture of the same name"
        )
    try:
        with Image.open(io.BytesIO(data)) as opened:
            upright = ImageOps.exif_transpose(opened)
            return np.asarray(upright.convert("RGB")), digest
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise RequestError(f"image: {wanted.file} is not a readable picture: {error}") from error


def _checked(image: NDArray[Any]) -> Pixels:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise RequestError(
            f"image: got {image.dtype} of shape {image.shape}, expected uint8 of shape "
            "(height, width, 3)"
        )
    return image


def _scaled(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    (height, width), found = size, pixels.shape[:2]
    if found == size:
        return pixels
    if found[0] * width != found[1] * height:
        raise RequestError(
            f"image: {say_size(found)} has not the shape of the run's {say_size(size)}: crop it, "
            "or ask for another size"
        )
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
