r"""The syntax of weighted prompts, as users of A1111's web UI write them.

::

    (word)       1.1 times the attention; ((word)) 1.21 times
    [word]       1 / 1.1 of it
    (word:1.3)   1.3 times; brackets within brackets multiply
    \( \) \[ \]  the brackets themselves, \\ a backslash
    BREAK        what follows begins a new chunk

Whatever is not that is text: a bracket that closes nothing, a number outside brackets, a number
that is none. A bracket that is never closed reaches to the end. A backslash before any other
character vanishes, so ``B\REAK`` is the word itself.

The grammar is that of ``parse_prompt_attention`` in A1111's modules/prompt_parser.py (version
1.10), with two differences: ``BREAK`` inside brackets is a break too (there it becomes text of
negative weight), and ``(word:1.2.3)`` is text in brackets (there it is an error).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

ROUND: Final = 1.1
SQUARE: Final = 1 / 1.1

_TOKEN: Final = re.compile(
    r"""
    \\ (?P<escaped> [()\[\]\\]? )
    | (?P<opening> [(\[] )
    | : \s* (?P<number> [+-]?[.\d]+ ) \s* \)
    | (?P<closing> [)\]] )
    | (?P<text> [^\\()\[\]:]+ | : )
    """,
    re.VERBOSE,
)
_BREAK: Final = re.compile(r"\s*\bBREAK\b\s*")


@dataclass(frozen=True)
class Segment:
    """Text whose tokens all have the same weight."""

    text: str
    weight: float = 1.0


Part = tuple[Segment, ...]
"""What stands between two breaks."""


@dataclass
class _Piece:
    """A piece of the prompt while brackets round it may still close; text None is a break."""

    text: str | None
    weight: float = 1.0


def parse_plain(text: str) -> tuple[Part, ...]:
    """Return ``text`` as it is: one part of one segment of weight 1."""
    return ((Segment(text),),)


def parse_weighted(text: str) -> tuple[Part, ...]:
    """Read the weights and breaks out of ``text``; there is no text that it refuses.

    Returns one part more than there are breaks. Neighbours of equal weight are one segment, and no
    segment is empty, so an empty part has no segments.
    """
    pieces: list[_Piece] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for match in _TOKEN.finditer(text):
        _read(match, pieces, opened)
    for bracket, starts in opened.items():
        for start in starts:
            _multiply(pieces[start:], ROUND if bracket == "(" else SQUARE)
    return tuple(_parts(pieces))


def _read(match: re.Match[str], pieces: list[_Piece], opened: dict[str, list[int]]) -> None:
    """Take in one token: open or close a bracket, or add its text."""
    kind, found = match.lastgroup, match[0]
    number = _number(match["number"])
    if kind == "escaped":
        pieces.append(_Piece(match["escaped"]))
    elif kind == "opening":
        opened[found].append(len(pieces))
    elif kind == "number" and opened["("] and number is None:
        pieces.append(_Piece(found[:-1]))
        _multiply(pieces[opened["("].pop() :], ROUND)
    elif kind == "number" and opened["("] and number is not None:
        _multiply(pieces[opened["("].pop() :], number)
    elif found == ")" and opened["("]:
        _multiply(pieces[opened["("].pop() :], ROUND)
    elif found == "]" and opened["["]:
        _multiply(pieces[opened["["].pop() :], SQUARE)
    else:
        pieces += _split_breaks(found)


def _number(text: str | None) -> float | None:
    """The number, or None where there is none: ``.``, ``1.2.3``, or more digits than a float."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _split_breaks(text: str) -> Iterator[_Piece]:
    for i, part in enumerate(_BREAK.split(text)):
        if i > 0:
            yield _Piece(None)
        yield _Piece(part)


def _multiply(pieces: list[_Piece], factor: float) -> None:
    for piece in pieces:
        piece.weight *= factor


def _parts(pieces: list[_Piece]) -> Iterator[Part]:
    """Cut at the breaks; join neighbours of equal weight, then drop what is empty."""
    part: list[_Piece] = []
    for piece in [*pieces, _Piece(None)]:
        if piece.text is not None:
            part.append(piece)
            continue
        runs = groupby(part, key=lambda piece: piece.weight)
        segments = (Segment("".join(p.text or "" for p in run), weight) for weight, run in runs)
        yield tuple(segment for segment in segments if segment.text)
        part = []
