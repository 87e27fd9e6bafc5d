from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgediffusion as ed
from edgediffusion.bundle import find_bundle
from edgediffusion.tokenizer import Tokenizer


def open_tokenizer() -> Tokenizer:
    bundle = ed.Bundle.open(find_bundle("shapes"))
    spec = bundle.manifest.tokenizer
    return Tokenizer(spec, bundle.file(spec.file))


TOKENIZER = open_tokenizer()
SPEC = ed.Bundle.open("shapes").manifest.tokenizer


def test_a_prompt_is_framed_and_padded() -> None:
    tokens = TOKENIZER.encode("a red circle")
    assert tokens.ids.shape == (1, 77)
    assert tokens.ids.dtype == np.int64
    assert tokens.ids[0, 0] == SPEC.bos
    assert tokens.ids[0, tokens.count + 1] == SPEC.eos
    assert (tokens.ids[0, tokens.count + 2 :] == SPEC.pad).all()
    assert tokens.dropped == ""


def test_case_and_space_do_not_matter() -> None:
    assert np.array_equal(
        TOKENIZER.encode("A  Red\n circle ").ids, TOKENIZER.encode("a red circle").ids
    )


def test_the_first_token_that_does_not_fit_starts_what_is_dropped() -> None:
    fits = " ".join(["red"] * 75)
    assert TOKENIZER.encode(fits).dropped == ""
    cut = TOKENIZER.encode(fits + " blue square")
    assert cut.count == 77
    assert cut.dropped.strip() == "blue square"
    assert np.array_equal(cut.ids, TOKENIZER.encode(fits).ids)


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=300))
def test_any_text_tokenizes(text: str) -> None:
    tokens = TOKENIZER.encode(text)
    assert tokens.ids.shape == (1, 77)
    assert text.endswith(tokens.dropped)
    assert (tokens.count > 75) == bool(tokens.dropped)


def test_tokens_know_where_they_start() -> None:
    ids, starts = TOKENIZER.split("a  red\ncircle")
    assert starts == [0, 3, 7]
    assert TOKENIZER.frame(ids).tolist() == TOKENIZER.encode("a red circle").ids.tolist()


def test_a_tokenizer_without_a_begin_has_room_for_one_more() -> None:
    spec = msgspec.structs.replace(SPEC, bos=None, length=5, pad=0)
    tokenizer = Tokenizer(spec, ed.Bundle.open("shapes").file(spec.file))
    assert tokenizer.room == 4
    tokens = tokenizer.encode("a red")
    assert tokens.ids[0, 2:].tolist() == [spec.eos, 0, 0]
    cut = tokenizer.encode("red red red red blue")
    assert cut.dropped.strip() == "blue"
    assert cut.ids[0, -1] == spec.eos


@pytest.mark.parametrize("text", ["\ud800", "a\udfff"])
def test_half_a_surrogate_pair_is_named(text: str) -> None:
    with pytest.raises(ed.RequestError, match="the prompt is not valid Unicode text"):
        TOKENIZER.split(text)


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ed.IntegrityError, match="is not a readable tokenizer"):
        Tokenizer(SPEC, tmp_path / "tokenizer.json")
