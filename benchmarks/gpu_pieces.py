"""What benchmarks/gpu.py measures, piece by piece: each small enough for one short call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from edgediffusion.errors import RequestError, choices
from edgediffusion.manifest import TEXT_ENCODERS

Part = Literal["text_encoder", "text_encoder_2", "unet", "vae_decoder", "picture"]

OURS: Final = "cuda, captured"
RIVAL: Final = "torch.compile"
"""The two of the bar: a step of ours takes at most as long as the rival's."""
UNCAPTURED: Final = "cuda, not captured"
UNFUSED: Final = "cuda, captured, plain graph"
BARE: Final = "cuda, captured, nothing copied"
"""What is left of a call without its checks and copies: the difference is our own share."""
EAGER: Final = "torch eager"

SIZES: Final = (512, 768, 1024)
BATCHES: Final = (1, 2, 4, 8, 16)
STEPS: Final = 50
PARTS: Final[Mapping[str, tuple[Part, ...]]] = {
    "sd15": ("text_encoder", "unet", "vae_decoder"),
    "sdxl": (*TEXT_ENCODERS, "unet", "vae_decoder"),
}
"""What a picture of an architecture is made with, in order."""


@dataclass(frozen=True)
class Piece:
    """One network at one size and batch, or whole pictures; all contenders take turns on it.

    pictures : made at once; with guidance the UNet sees two rows for each.
    """

    architecture: str
    part: Part
    size: int
    pictures: int = 1

    @property
    def key(self) -> str:
        """The piece's name in the report and at the command line."""
        return f"{self.architecture}/{self.part}/{self.size}/{self.pictures}"

    @property
    def rows(self) -> int:
        """The batch that the network sees."""
        return 2 * self.pictures if self.part == "unet" else self.pictures


def all_pieces() -> Iterator[Piece]:
    """Yield every piece, what matters most first."""
    for part in ("unet", "text_encoder", "vae_decoder", "picture"):
        yield Piece("sd15", part, 512)
    for part in ("unet", *TEXT_ENCODERS, "vae_decoder", "picture"):
        yield Piece("sdxl", part, 1024)
    for size in SIZES[1:]:
        for part in ("unet", "vae_decoder", "picture"):
            yield Piece("sd15", part, size)
    for size in SIZES[:-1]:
        for part in ("unet", "vae_decoder", "picture"):
            yield Piece("sdxl", part, size)
    for pictures in BATCHES[1:]:
        yield Piece("sd15", "unet", 512, pictures)
    for pictures in BATCHES[1:]:
        yield Piece("sdxl", "unet", 1024, pictures)


def chosen_pieces(names: Sequence[str], done: Mapping[str, Any]) -> list[Piece]:
    """The pieces that were asked for (none: all) and are not complete; raises RequestError.

    A name may be the beginning of several: ``sd15``, ``sd15/unet``.
    """
    known = {piece.key: piece for piece in all_pieces()}
    for name in names:
        if not any(key == name or key.startswith(f"{name}/") for key in known):
            raise RequestError(f"unknown piece {name!r}: {choices(name, known)}")
    wanted = [
        piece
        for key, piece in known.items()
        if not names or any(key == name or key.startswith(f"{name}/") for name in names)
    ]
    return [piece for piece in wanted if not done.get(piece.key, {}).get("complete")]
