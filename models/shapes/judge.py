"""A judge of pictures that has learned nothing: colours, connected regions, moments of shapes.

``judge(picture, caption)`` tells, for every attribute that the caption names, whether the picture
shows it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scenes import PALETTE, SHAPES, SIZES, Caption, Claim, coverage
from scipy import ndimage

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

ATTRIBUTES: Final = ("shape", "colour", "size", "relation", "background")
COLOUR_TOLERANCE: Final = 60.0  # RGB distance; the closest two palette colours are 71 apart
PURITY: Final = 0.8  # the share of a region's pixels within that tolerance
CONTRAST: Final = 35.0  # RGB distance from the background from which a pixel belongs to a thing
SPECK: Final = 40  # regions with fewer pixels are overlooked; the smallest thing has 390
OVERLAP: Final = 0.85  # intersection over union with the ideal shape
MOST: Final = 4  # things to look at; more are too many in any case
MARGIN: Final = 8  # pixels round a region
RIM: Final = 4  # pixels at the border that show the background
SMALL_BELOW: Final = 19.5  # radius in pixels; small things have 13 to 16, large ones 24 to 28
RADIUS_RANGE: Final = (10.0, 34.0)
UNIT_AREA: Final = {"circle": np.pi, "square": 3.24, "triangle": 1.8, "cross": 2.3616}
TRIANGLE_CENTROID: Final = 0.3  # of the radius, below the middle of the triangle's height

_NAMES: Final = tuple(PALETTE)
_VALUES: Final = np.array([PALETTE[name] for name in _NAMES], np.float64)


@dataclass(frozen=True)
class Seen:
    """One thing in a picture; None stands for what is none of the known."""

    shape: str | None
    colour: str | None
    size: str | None
    x: float
    y: float


@dataclass(frozen=True)
class Sight:
    """What a picture shows."""

    things: tuple[Seen, ...]
    background: str | None


def see(picture: NDArray[np.uint8]) -> Sight:
    """Describe a picture, uint8 (128, 128, 3), without knowing its caption."""
    pixels = picture.astype(np.float64)
    inner = np.zeros(picture.shape[:2], bool)
    inner[RIM:-RIM, RIM:-RIM] = True
    ground = np.median(pixels[~inner], axis=0)
    labels, count = ndimage.label(np.linalg.norm(pixels - ground, axis=-1) > CONTRAST)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    found = [i for i in range(1, count + 1) if areas[i] >= SPECK]
    near = ndimage.binary_dilation(np.isin(labels, found), iterations=3)
    background = name_colour(pixels[~near])
    return Sight(tuple(_look(pixels, labels == i, ground) for i in found[:MOST]), background)


def _window(region: Mask) -> tuple[slice, slice]:
    """The bounding box of a region with a margin."""
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    top, left = (max(0, int(line[0]) - MARGIN) for line in (rows, columns))
    return slice(top, int(rows[-1]) + MARGIN), slice(left, int(columns[-1]) + MARGIN)


def name_colour(pixels: Floats) -> str | None:
    """The palette's name for a region of pixels (N, 3), unless it is off the palette or mottled."""
    if not len(pixels):
        return None
    nearest = int(np.argmin(np.linalg.norm(_VALUES - np.median(pixels, axis=0), axis=1)))
    close = np.linalg.norm(pixels - _VALUES[nearest], axis=1) <= COLOUR_TOLERANCE
    return _NAMES[nearest] if close.mean() >= PURITY else None


def _look(pixels: Floats, region: Mask, ground: Floats) -> Seen:
    """Describe one connected region."""
    window = _window(region)
    pixels, region = pixels[window], region[window]
    core = ndimage.binary_erosion(region, iterations=2)
    inside = pixels[core if core.any() else region]
    own = np.median(inside, axis=0) - ground
    share = (pixels - ground) @ own / max(1.0, float(own @ own))
    mask = ndimage.binary_dilation(region, iterations=2) & (share > 0.5)
    if not mask.any():
        mask = region
    y, x = (float(axis.mean()) + 0.5 for axis in np.nonzero(mask))
    shape, radius = fit_shape(mask, x, y)
    low, high = RADIUS_RANGE
    size = SIZES[int(radius >= SMALL_BELOW)] if low <= radius <= high else None
    top, left = window[0].start, window[1].start
    return Seen(shape, name_colour(inside), size, left + x, top + y)


def fit_shape(mask: Mask, x: float, y: float) -> tuple[str | None, float]:
    """Name and radius of the ideal shape, of the mask's area and centroid, that fits it best."""
    area = float(mask.sum())
    best, name, radius = 0.0, "", 0.0
    window = mask.shape[0], mask.shape[1]
    for shape in SHAPES:
        size = float(np.sqrt(area / UNIT_AREA[shape]))
        middle = y - TRIANGLE_CENTROID * size if shape == "triangle" else y
        ideal = coverage(shape, x, middle, size, window) > 0.5
        overlap = float((mask & ideal).sum() / (mask | ideal).sum())
        if overlap > best:
            best, name, radius = overlap, shape, size
    return (name if best >= OVERLAP else None), radius


def relation(first: Seen, second: Seen) -> str:
    """Where the first thing lies, seen from the second."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def judge(picture: NDArray[np.uint8], caption: Caption) -> dict[str, bool]:
    """Whether each attribute that the caption names is there; the picture is right if all are.

    A shape or colour is right only if it is right for every thing. With the wrong number of things,
    every attribute of things is wrong. Where the caption leaves the relation open, the order is
    free.
    """
    sight = see(picture)
    either = len(sight.things) == len(caption.claims)
    orders: Iterable[tuple[Seen, ...]]
    orders = itertools.permutations(sight.things) if either else [sight.things]
    verdicts = [_compare(Sight(order, sight.background), caption) for order in orders]
    return max(verdicts, key=lambda verdict: sum(verdict.values()))


def _compare(sight: Sight, caption: Caption) -> dict[str, bool]:
    """Hold a sight against a caption, thing by thing."""
    complete = len(sight.things) == len(caption.claims)
    pairs: list[tuple[Seen, Claim]] = list(zip(sight.things, caption.claims, strict=False))
    verdict = {
        "shape": complete and all(seen.shape == claim.shape for seen, claim in pairs),
        "colour": complete and all(seen.colour == claim.colour for seen, claim in pairs),
    }
    if any(claim.size for claim in caption.claims):
        named = [(seen, claim) for seen, claim in pairs if claim.size]
        verdict["size"] = complete and all(seen.size == claim.size for seen, claim in named)
    if caption.relation:
        verdict["relation"] = complete and relation(*sight.things) == caption.relation
    if caption.background:
        verdict["background"] = sight.background == caption.background
    return verdict
