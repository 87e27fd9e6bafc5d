"""Prompt to chunks of weighted tokens, and the weights' effect on the text encoder's states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgediffusion.errors import RequestError
from edgediffusion.prompt import Part, parse_plain, parse_weighted
from edgediffusion.textual_inversion import Embedding, split_names
from edgediffusion.tokenizer import Tokenizer

Float = NDArray[np.float32]
Syntax = Literal["plain", "weighted"]
LongPrompts = Literal["truncate", "chunks"]


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """How prompts are read.

    syntax : ``plain`` takes every character as text; ``weighted`` reads A1111's brackets.
    long_prompts : ``truncate`` cuts what does not fit into one chunk; ``chunks`` adds chunks.
    embeddings : textual inversions that a prompt may name.
    """

    syntax: Syntax = "plain"
    long_prompts: LongPrompts = "truncate"
    embeddings: tuple[Embedding, ...] = ()


@dataclass(frozen=True)
class Chunk:
    """One call of the text encoder.

    ids : int64 array of shape (1, length), with begin, end and padding; id -1 - i is row i of
        ``vectors``.
    weights : float32 array of shape (length,); begin, end and padding weigh 1.
    vectors : float32 array of shape (n, width), the embeddings' vectors that this chunk has.
    """

    ids: NDArray[np.int64]
    weights: Float
    vectors: Float


@dataclass(frozen=True)
class Prompt:
    """A prompt as the text encoder takes it; ``dropped`` is the end of it that did not fit."""

    chunks: tuple[Chunk, ...]
    dropped: str


@dataclass(frozen=True)
class _Unit:
    """What only ``truncate`` may cut: a token, or all vectors of an embedding.

    at : the segment and the place in its text where the unit starts.
    """

    ids: tuple[int, ...]
    weight: float
    at: tuple[int, int]


_Tokens = list[tuple[int, float]]


def read_prompt(text: str, tokenizer: Tokenizer, options: PromptOptions) -> Prompt:
    """Tokenize a prompt into chunks; raises RequestError.

    A chunk is what the text encoder takes at once, 75 tokens between begin and end for CLIP. With
    ``chunks``, a break or a token that does not fit begins the next one, as in A1111's web UI
    (without its search for a comma to break at).
    """
    parts = parse_weighted(text) if options.syntax == "weighted" else parse_plain(text)
    units = [list(_units(part, tokenizer, options.embeddings)) for part in parts]
    dropped = ""
    if options.long_prompts == "chunks":
        filled = _fill(units, tokenizer.room)
    elif len(parts) == 1:
        tokens, dropped = _cut(units[0], parts[0], tokenizer.room)
        filled = [tokens]
    else:
        raise RequestError(
            "BREAK begins a new chunk, but long_prompts is 'truncate', which has only one: use "
            "long_prompts='chunks', or write B\\REAK for the word itself"
        )
    table = np.concatenate([each.vectors for each in options.embeddings] or [_no_vectors()])
    return Prompt(tuple(_chunk(tokens, tokenizer, table) for tokens in filled), dropped)


def empty_chunk(tokenizer: Tokenizer) -> Chunk:
    """Return the chunk of an empty prompt, by which a shorter prompt is made as long as another."""
    return _chunk([], tokenizer, _no_vectors())


def apply_weights(states: Float, weights: Float) -> Float:
    """Multiply each token's states by its weight, then restore the mean of all.

    This is the emphasis that A1111's web UI calls "Original". ``states`` is float32 of shape
    (1, length, width), one chunk; raises RequestError for weights that leave float32's range.
    """
    if (weights == 1).all():
        return states
    with np.errstate(over="ignore", invalid="ignore"):
        weighted = states * weights[np.newaxis, :, np.newaxis]
        # float64: the mean is much smaller than the numbers that it is the mean of
        mean, new_mean = (float(each.mean(dtype=np.float64)) for each in (states, weighted))
        weighted *= np.float32(mean / new_mean if new_mean else 1.0)
    if not np.isfinite(weighted).all():
        raise RequestError(
            f"the weights of the prompt, up to {np.abs(weights).max():.3g}, leave float32's range: "
            "use smaller ones"
        )
    return weighted


def _no_vectors() -> Float:
    return np.empty((0, 0), np.float32)


def _units(part: Part, tokenizer: Tokenizer, embeddings: Sequence[Embedding]) -> Iterator[_Unit]:
    """Yield a part's tokens, segment by segment, as A1111 tokenizes: ``(re)d`` is two words."""
    first_row = np.cumsum([0, *(len(embedding.vectors) for embedding in embeddings)]).tolist()
    rows = {e.name: range(*ab) for e, ab in zip(embeddings, pairwise(first_row), strict=True)}
    for index, segment in enumerate(part):
        for start, text, embedding in split_names(segment.text, embeddings):
            if embedding is not None:
                ids = tuple(-1 - row for row in rows[embedding.name])
                yield _Unit(ids, segment.weight, (index, start))
                continue
            for token, offset in zip(*tokenizer.split(text), strict=True):
                yield _Unit((token,), segment.weight, (index, start + offset))


def _cut(units: Sequence[_Unit], part: Part, room: int) -> tuple[_Tokens, str]:
    """Take the tokens that fit, and say the text of those that do not."""
    tokens: _Tokens = []
    for unit in units:
        tokens += [(token, unit.weight) for token in unit.ids]
        if len(tokens) > room:
            index, start = unit.at
            rest = [part[index].text[start:], *(segment.text for segment in part[index + 1 :])]
            return tokens[:room], "".join(rest)
    return tokens, ""


def _fill(parts: Sequence[Sequence[_Unit]], room: int) -> list[_Tokens]:
    """Deal the tokens out to chunks; a break at the very end begins none."""
    chunks: list[_Tokens] = []
    for units in parts:
        chunks.append([])
        for unit in units:
            if len(chunks[-1]) + len(unit.ids) > room:
                chunks.append([])
            chunks[-1] += [(token, unit.weight) for token in unit.ids]
    return chunks[:-1] if len(chunks) > 1 and not chunks[-1] else chunks


def _chunk(tokens: _Tokens, tokenizer: Tokenizer, table: Float) -> Chunk:
    rows = list(dict.fromkeys(-1 - token for token, _ in tokens if token < 0))
    numbers = {-1 - row: -1 - i for i, row in enumerate(rows)}
    ids = tokenizer.frame([numbers.get(token, token) for token, _ in tokens])
    weights = np.ones(ids.shape[1], np.float32)
    begin = 0 if tokenizer.spec.bos is None else 1
    weights[begin : begin + len(tokens)] = [weight for _, weight in tokens]
    return Chunk(ids, weights, table[rows] if rows else _no_vectors())
