"""The syntax of weighted prompts, against what is known of A1111's web UI."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgediffusion.prompt import Segment, parse_plain, parse_weighted
from tests.texts import awkward_texts

Pairs = list[tuple[str, float]]


def pairs(text: str) -> list[Pairs]:
    return [[(s.text, s.weight) for s in part] for part in parse_weighted(text)]


def escape(text: str) -> str:
    """Write any text so that it is read back as it is."""
    text = re.sub(r"([\\()\[\]])", r"\\\1", text)
    return text.replace("BREAK", "B\\REAK")


# The examples that A1111 gives in the documentation of its own parser, and its wiki's.
DOCUMENTED: list[tuple[str, Pairs]] = [
    ("normal text", [("normal text", 1.0)]),
    ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    (r"\(literal\]", [("(literal]", 1.0)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            ("a ", 1.0),
            ("house", 1.5730000000000004),
            (" ", 1.1),
            ("on", 1.0),
            (" a ", 1.1),
            ("hill", 0.55),
            (", sun, ", 1.1),
            ("sky", 1.4641000000000006),
            (".", 1.1),
        ],
    ),
    ("((a))", [("a", 1.1 * 1.1)]),
    ("[a]", [("a", 1 / 1.1)]),
    (r"anime \(style\)", [("anime (style)", 1.0)]),
]

# What the same grammar makes of oddities, worked out by hand.
ODD: list[tuple[str, Pairs]] = [
    ("", []),
    ("()", []),
    ("(:1.2)", []),
    ("a)b]c", [("a)b]c", 1.0)]),
    ("a:1.2)", [("a:1.2)", 1.0)]),
    ("(a:b)", [("a:b", 1.1)]),
    ("(a:)", [("a:", 1.1)]),
    ("(a:1.2", [("a:1.2", 1.1)]),
    ("[a:1.2]", [("a:1.2", 1 / 1.1)]),
    ("[a:1.2)", [("a:1.2)", 1 / 1.1)]),
    ("(a: 1.2 )", [("a", 1.2)]),
    ("(a:.5)", [("a", 0.5)]),
    ("(a:+2)", [("a", 2.0)]),
    ("(a:-1)", [("a", -1.0)]),
    ("(a:0)", [("a", 0.0)]),
    ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
    ("(a:.)", [("a:.", 1.1)]),
    ("(a:1e3)", [("a:1e3", 1.1)]),
    ("(a:" + "9" * 400 + ")", [("a:" + "9" * 400, 1.1)]),
    ("(a:1.1)(b)", [("ab", 1.1)]),
    ("(a [b) c]", [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1)]),
    ("(a (b:2):3)", [("a ", 3.0), ("b", 6.0)]),
    (r"\\(a\\)", [("\\", 1.0), ("a\\", 1.1)]),
    (r"a\b", [("ab", 1.0)]),
    ("a\\", [("a", 1.0)]),
    (r"(a\)b)", [("a)b", 1.1)]),
    ("(re)d", [("re", 1.1), ("d", 1.0)]),
    ("((a):1.5", [("a", 1.1 * 1.1), (":1.5", 1.1)]),
    ("(line\nbreak:1.3)", [("line\nbreak", 1.3)]),
    ("(a:\u0661.\u0665)", [("a", 1.5)]),
]


@pytest.mark.parametrize(("text", "wanted"), DOCUMENTED + ODD)
def test_weights(text: str, wanted: Pairs) -> None:
    (found,) = pairs(text)
    assert [each for each, _ in found] == [each for each, _ in wanted]
    assert [weight for _, weight in found] == pytest.approx([w for _, w in wanted], rel=1e-12)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a BREAK b", [[("a", 1.0)], [("b", 1.0)]]),
        ("a\n BREAK \tb", [[("a", 1.0)], [("b", 1.0)]]),
        ("BREAK", [[], []]),
        ("BREAK a", [[], [("a", 1.0)]]),
        ("a BREAK BREAK b", [[("a", 1.0)], [], [("b", 1.0)]]),
        ("a,BREAK,b", [[("a,", 1.0)], [(",b", 1.0)]]),
        ("BREAKFAST OUTBREAK break", [[("BREAKFAST OUTBREAK break", 1.0)]]),
        ("(a) BREAK (b:0.5)", [[("a", 1.1)], [("b", 0.5)]]),
        ("(a BREAK b:1.2)", [[("a", 1.2)], [("b", 1.2)]]),
        ("a [b BREAK c] d", [[("a ", 1.0), ("b", 1 / 1.1)], [("c", 1 / 1.1), (" d", 1.0)]]),
        (r"a B\REAK b", [[("a BREAK b", 1.0)]]),
    ],
)
def test_breaks(text: str, wanted: list[Pairs]) -> None:
    found = pairs(text)
    assert [[t for t, _ in part] for part in found] == [[t for t, _ in part] for part in wanted]
    flat = [w for part in wanted for _, w in part]
    assert [w for part in found for _, w in part] == pytest.approx(flat, rel=1e-12)


def test_plain_text_has_no_syntax() -> None:
    assert parse_plain("(a:1.2) BREAK [b]") == ((Segment("(a:1.2) BREAK [b]", 1.0),),)


# --- properties ----------------------------------------------------------------------------------

SYNTAX = st.lists(
    st.sampled_from([*"()[]\\:.+-12 aB\n", "BREAK", " BREAK ", ":1.2)"]), max_size=30
).map("".join)


@given(text=st.text() | SYNTAX)
def test_every_text_is_read(text: str) -> None:
    for part in parse_weighted(text):
        assert all(segment.text for segment in part)
        assert all(one.weight != two.weight for one, two in pairwise(part))


@given(text=st.text() | SYNTAX)
def test_no_character_is_invented_and_only_syntax_is_lost(text: str) -> None:
    """What is read is the text without brackets, backslashes, numbers and breaks, in order."""
    read = "".join(segment.text for part in parse_weighted(text) for segment in part)
    rest = iter(text)
    assert all(character in rest for character in read)
    kept = {c for c in text if c not in "()[]\\:.+-BREAK" and not c.isdecimal() and not c.isspace()}
    assert kept <= set(read)


@given(text=st.text(min_size=1) | SYNTAX.filter(bool))
def test_an_escaped_text_is_itself(text: str) -> None:
    assert parse_weighted(escape(text)) == parse_plain(text)


WORDS = st.text(alphabet="abc ,:!é猫", min_size=1).filter(lambda text: not text.endswith(":"))
WEIGHTS = st.floats(0.01, 10).map(lambda value: float(f"{value:.4f}"))
TREES = st.recursive(
    WORDS.map(lambda word: ("text", word)),
    lambda inner: (
        st.tuples(st.sampled_from(["(", "["]), st.lists(inner, max_size=4))
        | st.tuples(WEIGHTS, st.lists(inner, max_size=4))
    ),
    max_leaves=12,
)


def write(tree: tuple[object, object]) -> str:
    kind, content = tree
    if kind == "text":
        return str(content)
    inside = "".join(write(each) for each in content)  # type: ignore[attr-defined]
    return f"[{inside}]" if kind == "[" else f"({inside})" if kind == "(" else f"({inside}:{kind})"


def weigh(tree: tuple[object, object], weight: float = 1.0) -> Pairs:
    """The weight of every character, by the definition."""
    kind, content = tree
    if kind == "text":
        return [(character, weight) for character in str(content)]
    factor = {"(": 1.1, "[": 1 / 1.1}.get(kind, kind)  # type: ignore[call-overload]
    return [pair for each in content for pair in weigh(each, weight * factor)]  # type: ignore[attr-defined]


@given(tree=TREES)
def test_nested_weights_multiply(tree: tuple[object, object]) -> None:
    (part,) = parse_weighted(write(tree))
    found = [(character, s.weight) for s in part for character in s.text]
    wanted = weigh(tree)
    assert [c for c, _ in found] == [c for c, _ in wanted]
    assert [w for _, w in found] == pytest.approx([w for _, w in wanted], rel=1e-9)


def test_thousands_of_awkward_texts_are_read() -> None:
    for text in awkward_texts(5_000, seed=3):
        assert all(math.isfinite(s.weight) for part in parse_weighted(text) for s in part)


def test_deep_nesting_needs_no_recursion() -> None:
    ((segment,),) = parse_weighted("(" * 5_000 + "a" + ")" * 5_000)
    assert segment == Segment("a", pytest.approx(1.1**5000, rel=1e-9))
