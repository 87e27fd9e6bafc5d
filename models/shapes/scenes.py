"""What the model learns: scenes of one or two coloured shapes, their pictures and their captions.

Everything is drawn from a counter-based seed, so that picture ``index`` of a seed is the same on
every machine: ``scene = draw_scene(rng(seed, index))``, ``render(scene)``,
``draw_caption(scene, rng(...))``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

SIDE: Final = 128
PALETTE: Final = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 50),
    "purple": (140, 60, 180),
    "orange": (240, 140, 40),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
COLOURS: Final = tuple(PALETTE)
SHAPES: Final = ("circle", "square", "triangle", "cross")
SIZES: Final = ("small", "large")
RELATIONS: Final = ("above", "below", "left of", "right of")
INVERSE: Final = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}

RADIUS: Final = {"small": (13.0, 16.0), "large": (24.0, 28.0)}
GAP: Final = 6.0
SQUARE_HALF_SIDE: Final = 0.9  # of the radius, likewise the next two
CROSS_HALF_ARM: Final = 0.36
TRIANGLE_HALF_HEIGHT: Final = 0.9
DROP: Final = 0.3  # how often a size, the relation or the background goes unsaid
HELD_OUT_SEED: Final = 20_26

Kind = tuple[str, str]
"""What an object is: its shape and its colour."""
KINDS: Final[tuple[Kind, ...]] = tuple(itertools.product(SHAPES, COLOURS))


@dataclass(frozen=True)
class Thing:
    """One object of a scene; the centre and the radius are in pixels."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float

    @property
    def kind(self) -> Kind:
        """The shape and the colour."""
        return self.shape, self.colour


@dataclass(frozen=True)
class Scene:
    """One or two things; ``relation`` says where the first lies, seen from the second."""

    things: tuple[Thing, ...]
    background: str
    relation: str | None = None


@dataclass(frozen=True)
class Claim:
    """What a caption says of one thing; None where it is silent."""

    shape: str
    colour: str
    size: str | None = None


@dataclass(frozen=True)
class Caption:
    """What a caption says, in the order in which it says it; ``str()`` is its text."""

    claims: tuple[Claim, ...]
    relation: str | None = None
    background: str | None = None

    def __str__(self) -> str:
        words = [_noun_phrase(self.claims[0].size, self.claims[0].colour, self.claims[0].shape)]
        for claim in self.claims[1:]:
            words += [self.relation or "and", _noun_phrase(claim.size, claim.colour, claim.shape)]
        if self.background:
            words += ["on", _noun_phrase(None, self.background, "background")]
        return " ".join(words)


def rng(*key: int) -> np.random.Generator:
    """The random numbers that belong to `key`, the same on every machine."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


# -------------------------------------------------------------------------------- the held-out set


def _hold_out() -> tuple[frozenset[Kind], frozenset[tuple[Kind, Kind]]]:
    """Choose 10 % of the kinds, and 20 % of the ordered pairs, always with the mirrored pair."""
    random = rng(HELD_OUT_SEED)
    singles = random.permutation(len(KINDS))[: round(0.1 * len(KINDS))]
    pairs = list(itertools.combinations(KINDS, 2))
    chosen = [pairs[i] for i in random.permutation(len(pairs))[: round(0.2 * len(pairs))]]
    both_orders = itertools.chain(chosen, ((b, a) for a, b in chosen))
    return frozenset(KINDS[i] for i in singles), frozenset(both_orders)


HELD_OUT_SINGLES, HELD_OUT_PAIRS = _hold_out()


def is_held_out(kinds: tuple[Kind, ...]) -> bool:
    """Whether training must never see a picture of exactly these things."""
    if len(kinds) == 1:
        return kinds[0] in HELD_OUT_SINGLES
    return (kinds[0], kinds[1]) in HELD_OUT_PAIRS


# ---------------------------------------------------------------------------------- drawing scenes


def draw_scene(
    random: np.random.Generator, *, held_out: bool = False, pair_share: float = 0.7
) -> Scene:
    """Draw a scene from the training combinations, or from the held-out ones.

    Parameters
    ----------
    random : Generator
        Where the choices come from.
    held_out : bool
        Draw only combinations that training never shows, instead of only those that it shows.
    pair_share : float
        The share of scenes with two things.
    """
    count = 2 if random.random() < pair_share else 1
    while True:
        kinds = tuple(KINDS[i] for i in random.choice(len(KINDS), count, replace=False))
        if is_held_out(kinds) == held_out:
            break
    free = [name for name in COLOURS if all(name != colour for _, colour in kinds)]
    background = free[random.integers(len(free))]
    sizes = [SIZES[random.integers(2)] for _ in kinds]
    radii = [float(random.uniform(*RADIUS[size])) for size in sizes]
    if count == 1:
        relation, places = None, [(float(random.uniform(40, 88)), float(random.uniform(40, 88)))]
    else:
        relation = RELATIONS[random.integers(4)]
        places = _place_pair(random, relation, radii)
    things = tuple(
        Thing(shape, colour, size, x, y, radius)
        for (shape, colour), size, (x, y), radius in zip(kinds, sizes, places, radii, strict=True)
    )
    return Scene(things, background, relation)


def _place_pair(
    random: np.random.Generator, relation: str, radii: list[float]
) -> list[tuple[float, float]]:
    """Two centres that hold the relation along one axis, and differ little along the other."""
    reach = sum(radii)
    distance = reach + GAP + float(random.uniform(0, min(12.0, SIDE - 4 - 2 * reach - GAP)))
    first, second = radii if relation in ("above", "left of") else radii[::-1]
    low, high = 2 + first, SIDE - 2 - second - distance
    middle = (low + high) / 2
    jitter = min(10.0, (high - low) / 2)
    start = middle + float(random.uniform(-jitter, jitter))
    along = [start, start + distance]
    if relation in ("below", "right of"):
        along.reverse()
    across = [64 + float(random.uniform(-8, 8)) for _ in radii]
    vertical = relation in ("above", "below")
    return [(b, a) if vertical else (a, b) for a, b in zip(along, across, strict=True)]


def scenes(seed: int, start: int, stop: int, *, held_out: bool = False) -> Iterator[Scene]:
    """Scenes number `start` to `stop` of a seed."""
    return (draw_scene(rng(seed, index), held_out=held_out) for index in range(start, stop))


# ----------------------------------------------------------------------------------------- captions


def _noun_phrase(size: str | None, colour: str, noun: str) -> str:
    words = " ".join(word for word in (size, colour, noun) if word)
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def full_caption(scene: Scene) -> Caption:
    """The caption that leaves nothing unsaid."""
    claims = tuple(Claim(thing.shape, thing.colour, thing.size) for thing in scene.things)
    return Caption(claims, scene.relation, scene.background)


def mirrored(caption: Caption) -> Caption:
    """The same statement with the second thing named first."""
    relation = INVERSE[caption.relation] if caption.relation else None
    return replace(caption, claims=caption.claims[::-1], relation=relation)


def draw_caption(scene: Scene, random: np.random.Generator, drop: float = DROP) -> Caption:
    """Describe a scene; each size, the relation, the background go unsaid with chance `drop`."""
    full = full_caption(scene)
    said = random.random(2 + len(full.claims)) >= drop
    caption = Caption(
        tuple(
            c if keep else replace(c, size=None)
            for c, keep in zip(full.claims, said[2:], strict=True)
        ),
        full.relation if said[0] else None,
        full.background if said[1] else None,
    )
    return mirrored(caption) if len(caption.claims) == 2 and random.random() < 0.5 else caption


# ----------------------------------------------------------------------------------------- pictures


def signed_distance(shape: str, x: Array, y: Array, radius: float) -> Array:
    """Distance from the outline of a shape about the origin, negative within."""
    if shape == "circle":
        return np.asarray(np.hypot(x, y) - radius, np.float32)
    if shape == "square":
        return np.asarray(np.maximum(abs(x), abs(y)) - SQUARE_HALF_SIDE * radius, np.float32)
    if shape == "cross":
        arm = CROSS_HALF_ARM * radius
        bars = (np.maximum(abs(x) - a, abs(y) - b) for a, b in ((radius, arm), (arm, radius)))
        return np.asarray(np.minimum(*bars), np.float32)
    half = (
        TRIANGLE_HALF_HEIGHT * radius
    )  # apex up, from y = -half to y = half, as wide as the circle
    norm = float(np.hypot(2 * half, radius))
    side = (abs(x) * 2 * half - (y + half) * radius) / norm
    return np.asarray(np.maximum(side, y - half), np.float32)


def coverage(
    shape: str, x: float, y: float, radius: float, window: tuple[int, int] = (SIDE, SIDE)
) -> Array:
    """How much of every pixel of a window (height, width) the shape covers, 0 to 1."""
    rows, columns = (np.arange(n, dtype=np.float32) + np.float32(0.5) for n in window)
    dx, dy = columns[None, :] - np.float32(x), rows[:, None] - np.float32(y)
    return np.clip(np.float32(0.5) - signed_distance(shape, dx, dy, radius), 0, 1)


def render(scene: Scene) -> NDArray[np.uint8]:
    """Paint a scene: uint8, (128, 128, 3)."""
    picture = np.empty((SIDE, SIDE, 3), np.float32)
    picture[:] = PALETTE[scene.background]
    for thing in scene.things:
        alpha = coverage(thing.shape, thing.x, thing.y, thing.radius)[..., None]
        picture += alpha * (np.asarray(PALETTE[thing.colour], np.float32) - picture)
    return np.rint(picture).astype(np.uint8)
