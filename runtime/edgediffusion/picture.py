"""Write a picture as PNG together with what is needed to make it again."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgediffusion.errors import OutputError, RequestError
from edgediffusion.files import write_atomically
from edgediffusion.request import Request, request_from_recipe

RECIPE_KEY: Final = "edgediffusion"
PARAMETERS_KEY: Final = "parameters"

# What users of A1111's web UI call the samplers; its PNG readers match on these words.
A1111_NAMES: Final = {
    "ddim": "DDIM",
    "dpmpp_2m": "DPM++ 2M",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "pndm": "PLMS",
}


def encode_png(pixels: NDArray[np.uint8], recipe: dict[str, Any]) -> bytes:
    """Encode uint8 (height, width, 3) as PNG bytes that carry ``recipe`` in two text chunks."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(RECIPE_KEY, msgspec.json.encode(recipe).decode())
    info.add_itxt(PARAMETERS_KEY, a1111_parameters(recipe))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(
    path: str | os.PathLike[str], pixels: NDArray[np.uint8], recipe: dict[str, Any]
) -> None:
    """Write a PNG atomically; raises OutputError if it cannot be written."""
    target = Path(path)
    try:
        write_atomically(target, encode_png(pixels, recipe))
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written: {error.strerror or error}. "
            "Choose another path with -o, or make room there"
        ) from error


def request_from_png(path: str | os.PathLike[str]) -> Request:
    """Read back the request that makes the picture at ``path`` again with the same bundle."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            recipe = msgspec.json.decode(image.info[RECIPE_KEY].encode())
        return request_from_recipe(recipe["request"])
    except FileNotFoundError:
        raise RequestError(f"{path} does not exist") from None
    except (UnidentifiedImageError, OSError, SyntaxError):
        raise RequestError(f"{path} is not a readable PNG picture") from None
    except (KeyError, TypeError, msgspec.MsgspecError):
        raise RequestError(f"{path} carries no recipe: edgediffusion did not make it") from None


def a1111_parameters(recipe: dict[str, Any]) -> str:
    """Write a recipe the way that A1111's web UI writes and reads generation parameters."""
    request = recipe["request"]
    height, width = request["size"]
    sampler = A1111_NAMES.get(request["sampler"], request["sampler"])
    settings = {
        "Steps": request["steps"],
        "Sampler": sampler,
        "CFG scale": request["guidance"],
        "Seed": request["seed"],
        "Size": f"{width}x{height}",
        "Model hash": recipe["bundle_sha256"][:10],
        "Model": recipe["bundle"],
        "Version": f"edgediffusion {recipe['version']}",
    }
    lines = [request["prompt"]]
    if request["negative"]:
        lines.append(f"Negative prompt: {request['negative']}")
    lines.append(", ".join(f"{key}: {value}" for key, value in settings.items()))
    return "\n".join(lines)
