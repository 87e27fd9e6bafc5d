"""Texts in volume for the tokenizers: ordinary prompts and all of Unicode's awkward corners.

    for text in awkward_texts(20_000, seed=1): ...

The same seed gives the same texts on every machine and Python: code points are drawn by number and
not by what this Python's Unicode version says of them.
"""

# ruff: noqa: RUF001, SIM905  # look-alikes and a wall of words are what this is for

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final

WORDS: Final = (
    "a the of in photo portrait oil painting castle Red BLUE circle square 8k trending artstation "
    "highly detailed, cinematic; lighting. masterpiece! best-quality it's don't we'll I'd they've "
    "you're o'clock l'été naïve façade Ångström smörgåsbord 1girl 2048x2048 f/1.8 #tag @user "
    "(word) [word] {word} word:1.2 100% c++ ... -- ??? !!! !a! a!b ! \"quoted\" 'single' "
    "’s ’t 'S 'T 'LL"
).split()
SPECIALS: Final = (
    "<|endoftext|>",
    "<|startoftext|>",
    "<|ENDOFTEXT|>",
    "<|endoftext|",
    "|endoftext|>",
    "<pad>",
    "</s>",
    "<unk>",
    "<extra_id_0>",
    "</w>",
    "▁",
    "!",
    "!!!!",
)
SPACES: Final = (
    *map(chr, range(0x21)),
    *"\x7f\x85\xa0\u1680\u180e",
    *map(chr, range(0x2000, 0x2010)),
    *"\u2028\u2029\u202f\u205f\u2060\u3000\ufeff",
)
# Lower-casing that grows or depends on its neighbours, ligatures, digraphs, dotless and dotted i.
CASES: Final = (*"İıßẞΣςσǅǈǋﬁﬃŉΐԵևᾳΩKÅ", "ΑΣ", "ΑΣ.", "ﬀ", "Ⅷ", "ⓐ", "🅰")
# Normalization: the same letter in several spellings, marks in either order, Hangul in pieces.
MARKS: Final = (
    *("é", "e\u0301", "ẹ\u0301", "e\u0301\u0323", "e\u0323\u0301", "\u0301", "\u0344", "\u0958"),
    *("한", "\u1112\u1161\u11ab", "\u1112\u1161", "\uac00\u11a8", "\u2126", "\u212b", "\ufb1d"),
    *("नि", "தி", "ก็", "ལྷ", "u\u0308\u0304", "\U0001d15e", "\u0e33"),
)
EMOJI: Final = (
    *("😀", "👨‍👩‍👧‍👦", "👍🏽", "🏳️‍🌈", "🇵🇱", "🇵", "1️⃣", "❤️", "❤", "🧑🏿‍🚀", "\u200d", "\ufe0f"),
    *("\U0001f3f4\U000e0067\U000e0062\U000e007f", "🙂"),
)
SCRIPTS: Final = (
    (0x0041, 0x024F),
    (0x0370, 0x03FF),
    (0x0400, 0x052F),
    (0x0590, 0x06FF),  # right to left
    (0x0900, 0x0DFF),
    (0x0E00, 0x0EFF),
    (0x10A0, 0x10FF),
    (0x3040, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0x1D400, 0x1D7FF),  # mathematical letters and digits
)
# Digits that are letters, letters that are digits, fractions, superscripts, Roman, Chinese, Tamil.
NUMBERS: Final = (*"0123456789²³¹½¾٠١٢०१२①⑳Ⅳↁ〇〡四百௧௰𝟘𝟙🄀", "12345", "3.14", "1e9", "１２")


def awkward_texts(count: int, seed: int) -> Iterator[str]:
    """Yield ``count`` texts, each of one kind or a mixture of kinds, none with half surrogates."""
    draw = random.Random(seed)
    for _ in range(count):
        kinds = draw.choices(KINDS, k=draw.choice((1, 1, 2, 4)))
        # one text in eight is longer than any text encoder takes
        length = draw.randrange(1, 12) if draw.random() > 0.12 else draw.randrange(60, 160)
        joint = draw.choice(("", " ", " ", ", "))
        yield joint.join(draw.choice(kinds)(draw) for _ in range(length))


def _any_code_point(draw: random.Random) -> str:
    code = draw.randrange(0x110000 - 0x800)
    return chr(code if code < 0xD800 else code + 0x800)


def _basic_plane(draw: random.Random) -> str:
    return chr(draw.choice((draw.randrange(0x0, 0xD800), draw.randrange(0xE000, 0x10000))))


def _script(draw: random.Random) -> str:
    first, last = draw.choice(SCRIPTS)
    return "".join(chr(draw.randint(first, last)) for _ in range(draw.randrange(1, 8)))


def _ascii(draw: random.Random) -> str:
    return "".join(chr(draw.randrange(0x80)) for _ in range(draw.randrange(1, 6)))


def _one_of(texts: tuple[str, ...] | list[str]) -> Callable[[random.Random], str]:
    return lambda draw: draw.choice(texts)


KINDS: Final = (
    *[_one_of(WORDS)] * 3,
    *(_one_of(texts) for texts in (SPECIALS, SPACES, CASES, MARKS, EMOJI, NUMBERS)),
    *(_any_code_point, _basic_plane, _script, _ascii),
)
