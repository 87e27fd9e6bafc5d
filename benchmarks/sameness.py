"""Same work is proven, not assumed: latents and pictures against those of the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgediffusion.golden import relative_l2
from edgediffusion.manifest import GATES as GRAPH_GATES

COLOURS: Final = 3
FLAT: Final = 5.0
"""Below this standard deviation (of 0..255) a picture is flat and its PSNR proves nothing."""

GATES: Final[Mapping[str, tuple[float, float]]] = {
    "fp32": (3e-2, 35.0),
    "fp16": (2e-1, 25.0),
    "bf16": (2e-1, 20.0),
}
"""By arithmetic: the largest L2 of final latents, and the least PSNR in dB, of the same work.

Wider than the gates of single graphs, because several steps with guidance add their errors up. On
the demo, at four steps, other work was this far from the right one: another seed 1.07 (7 dB), three
or five steps 0.50 and 0.34 (16 and 17 dB), guidance 2.5 for 3 0.22 (19.5 dB), one other word 0.29
(18 dB). A flag says that a picture does not prove the same work, not that it was other work. One
prediction of the UNet on given inputs is therefore compared as well: where it is within the
project's gates for single graphs, the network is the same, and what differs is around it or grows
from step to step.
"""


@dataclass(frozen=True)
class Work:
    """What a contender was asked for."""

    size: tuple[int, int]
    batch: int
    steps: int


@dataclass(frozen=True)
class Picture:
    """What a contender made; see `contenders.protocol.Made`."""

    pictures: NDArray[np.uint8]
    latents: NDArray[np.float32] | None
    steps: int


def read_picture(path: Path) -> Picture:
    """Read what a worker saved. Raises OSError, ValueError or KeyError for another file."""
    with np.load(path, allow_pickle=False) as saved:
        return Picture(saved["pictures"], saved.get("latents"), int(saved["steps"]))


def compare(made: Picture, reference: Picture | None, work: Work, precision: str) -> dict[str, Any]:
    """Say how near a picture is to the reference's, and what about it was other work.

    Returns JSON-ready ``latents_l2``, ``psnr_db`` (None where it cannot be told; equal pictures
    have no finite PSNR, also None), ``identical``, ``picture_std`` and ``flags``.
    """
    flags = work_flags(made, work)
    l2 = psnr = None
    identical = False
    if reference is None:
        flags.append("there is no reference to compare with")
    elif made.pictures.shape == reference.pictures.shape:
        identical = bool(np.array_equal(made.pictures, reference.pictures))
        psnr = None if identical else psnr_db(made.pictures, reference.pictures)
        l2 = latents_l2(made, reference)
        flags += distance_flags(l2, psnr, precision)
    return {
        "latents_l2": l2,
        "psnr_db": psnr,
        "identical": identical,
        "picture_std": float(made.pictures.std()),
        "flags": flags,
    }


def work_flags(made: Picture, work: Work) -> list[str]:
    """What can be told without a reference: size, batch, steps, a flat picture."""
    flags = []
    batch, *size, channels = made.pictures.shape
    if tuple(size) != work.size:
        flags.append(f"made pictures of {_say(size)}, not {_say(work.size)}")
    if channels != COLOURS:
        flags.append(f"made pictures of {channels} channels, not {COLOURS}")
    if batch != work.batch:
        flags.append(f"made {batch} pictures, not {work.batch}")
    if made.steps != work.steps:
        flags.append(f"made {made.steps} steps, not {work.steps}")
    if made.pictures.std() < FLAT:
        flags.append(f"the picture is flat: standard deviation {made.pictures.std():.1f} of 255")
    if made.latents is not None and not np.isfinite(made.latents).all():
        flags.append("the latents hold NaN or infinity")
    return flags


def distance_flags(l2: float | None, psnr: float | None, precision: str) -> list[str]:
    """What is too far from the reference for the same work in this arithmetic."""
    most, least = GATES[precision]
    flags = []
    if l2 is not None and not l2 <= most:
        flags.append(f"latents differ from the reference by {l2:.2g}; {precision} allows {most:g}")
    if psnr is not None and psnr < least:
        flags.append(f"PSNR to the reference {psnr:.0f} dB; {precision} has at least {least:g}")
    return flags


def prediction_l2(
    made: NDArray[np.float32] | None, reference: NDArray[np.float32] | None
) -> float | None:
    """The relative L2 of two UNet predictions of the same inputs; None where one is missing."""
    if made is None or reference is None:
        return None
    return relative_l2(made, reference) if made.shape == reference.shape else math.inf


def prediction_flags(l2: float | None, precision: str) -> list[str]:
    """What is too far from the reference's prediction for the same network in this arithmetic."""
    most = GRAPH_GATES[precision]
    if l2 is None or l2 <= most:
        return []
    return [f"the UNet differs from the reference's by {l2:.2g}; {precision} allows {most:g}"]


def latents_l2(made: Picture, reference: Picture) -> float | None:
    """The relative L2 of final latents; infinite for another shape, None where there are none."""
    if made.latents is None or reference.latents is None:
        return None
    if made.latents.shape != reference.latents.shape:
        return math.inf
    return relative_l2(made.latents, reference.latents)


def psnr_db(got: NDArray[np.uint8], want: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of pictures in 0..255, in dB; infinite where they are equal."""
    error = float(np.mean((got.astype(np.float64) - want.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _say(size: Any) -> str:
    return "x".join(map(str, size))
