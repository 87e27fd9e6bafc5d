from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgediffusion as ed
from edgediffusion.conditioning import (
    Chunk,
    Prompt,
    PromptOptions,
    apply_weights,
    empty_chunk,
    read_prompt,
)
from edgediffusion.textual_inversion import Embedding
from edgediffusion.tokenizer import Tokenizer

BUNDLE = ed.Bundle.open("shapes")
SPEC = BUNDLE.manifest.tokenizer
TOKENIZER = Tokenizer(SPEC, BUNDLE.file(SPEC.file))
THREE = Embedding("blob", np.arange(12, dtype=np.float32).reshape(3, 4), "", "")
ONE = Embedding("<x>", np.full((1, 4), 9, np.float32), "", "")
TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=300)


def read(text: str, **options: Any) -> Prompt:
    return read_prompt(text, TOKENIZER, PromptOptions(**options))


def body(chunk: Chunk) -> list[int]:
    """The ids between begin and end."""
    ids: list[int] = chunk.ids[0].tolist()
    assert ids[0] == SPEC.bos
    return ids[1 : ids.index(SPEC.eos)]


def words(text: str) -> list[int]:
    return TOKENIZER.split(text)[0]


@given(text=TEXT)
def test_a_plain_prompt_is_what_the_tokenizer_says(text: str) -> None:
    prompt, tokens = read(text), TOKENIZER.encode(text)
    (chunk,) = prompt.chunks
    assert np.array_equal(chunk.ids, tokens.ids)
    assert prompt.dropped == tokens.dropped
    assert (chunk.weights == 1).all()
    assert chunk.vectors.shape == (0, 0)


@given(text=TEXT, embeddings=st.booleans())
def test_every_prompt_is_read_in_every_way(text: str, embeddings: bool) -> None:
    learned = (THREE, ONE) if embeddings else ()
    prompt = read(text, syntax="weighted", long_prompts="chunks", embeddings=learned)
    assert prompt.dropped == ""
    for chunk in prompt.chunks:
        assert (chunk.ids.shape, chunk.ids.dtype) == ((1, 77), np.int64)
        assert (chunk.weights.shape, chunk.weights.dtype) == ((77,), np.float32)
        assert -len(chunk.vectors) <= chunk.ids.min()


def test_weights_lie_on_their_tokens() -> None:
    (chunk,) = read("a (red:1.5) [circle]", syntax="weighted").chunks
    assert body(chunk) == words("a red circle")
    np.testing.assert_allclose(chunk.weights[:4], [1, 1, 1.5, 1 / 1.1], rtol=1e-6)
    assert (chunk.weights[4:] == 1).all()


def test_segments_are_tokenized_one_by_one() -> None:
    (chunk,) = read("(re)d", syntax="weighted").chunks
    assert body(chunk) == words("re d") != words("red")


def test_what_is_cut_off_a_weighted_prompt_is_told_without_its_syntax() -> None:
    prompt = read("red " * 74 + "(blue circle:1.3), [and] more", syntax="weighted")
    assert body(prompt.chunks[0])[-1:] == words("blue")
    assert prompt.dropped.strip() == "circle, and more"
    assert prompt.chunks[0].weights[75] == np.float32(1.3)
    assert prompt.chunks[0].weights[76] == 1


def test_long_prompts_fill_one_chunk_after_the_other() -> None:
    prompt = read("red blue " * 80, long_prompts="chunks")
    ids = words("red blue " * 80)
    assert [body(chunk) for chunk in prompt.chunks] == [ids[:75], ids[75:150], ids[150:]]


@pytest.mark.parametrize(("count", "chunks"), [(0, 1), (75, 1), (76, 2), (150, 2), (151, 3)])
def test_chunks_are_no_more_than_needed(count: int, chunks: int) -> None:
    assert len(read("red " * count, long_prompts="chunks").chunks) == chunks


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("red BREAK blue", ["red", "blue"]),
        ("BREAK red", ["", "red"]),
        ("red BREAK", ["red"]),
        ("red BREAK BREAK blue", ["red", "", "blue"]),
        ("BREAK", [""]),
        ("", [""]),
    ],
)
def test_breaks_begin_chunks(text: str, wanted: list[str]) -> None:
    prompt = read(text, syntax="weighted", long_prompts="chunks")
    assert [body(chunk) for chunk in prompt.chunks] == [words(each) for each in wanted]


def test_a_break_needs_chunks() -> None:
    with pytest.raises(ed.RequestError, match="BREAK begins a new chunk, but long_prompts is 'tr"):
        read("a BREAK b", syntax="weighted")
    assert body(read("a BREAK b").chunks[0]) == words("a break b")


def test_learned_words_are_rows_below_zero() -> None:
    (chunk,) = read("a blob and <x> Blob", embeddings=(ONE, THREE)).chunks
    assert body(chunk) == [*words("a"), -1, -2, -3, *words("and"), -4, -1, -2, -3]
    np.testing.assert_array_equal(chunk.vectors, np.concatenate([THREE.vectors, ONE.vectors]))


def test_a_chunk_has_only_the_vectors_that_it_names() -> None:
    prompt = read("<x> " + "red " * 72 + "blob", long_prompts="chunks", embeddings=(THREE, ONE))
    first, second = prompt.chunks
    assert body(first)[0] == -1
    np.testing.assert_array_equal(first.vectors, ONE.vectors)
    assert body(second) == [-1, -2, -3]
    np.testing.assert_array_equal(second.vectors, THREE.vectors)


def test_only_truncating_cuts_through_a_learned_word() -> None:
    text = "red " * 73 + "blob blue"
    prompt = read(text, embeddings=(THREE,))
    assert body(prompt.chunks[0])[-2:] == [-1, -2]
    assert prompt.dropped == "blob blue"
    assert len(prompt.chunks[0].vectors) == 2


def test_an_empty_chunk_is_that_of_an_empty_prompt() -> None:
    assert np.array_equal(empty_chunk(TOKENIZER).ids, TOKENIZER.encode("").ids)
    assert (empty_chunk(TOKENIZER).weights == 1).all()


# --- the weights' effect -------------------------------------------------------------------------

STATES = np.random.default_rng(0).normal(0.1, 1, (1, 77, 8)).astype(np.float32)


def test_weights_of_one_change_no_bit() -> None:
    assert apply_weights(STATES, np.ones(77, np.float32)) is STATES


def test_the_mean_is_restored() -> None:
    weights = np.ones(77, np.float32)
    weights[3:9] = 1.4
    made = apply_weights(STATES, weights)
    assert made.dtype == np.float32
    assert made.mean(dtype=np.float64) == pytest.approx(STATES.mean(dtype=np.float64), rel=1e-5)
    ratio = made / STATES
    np.testing.assert_allclose(ratio[0, 3:9] / ratio[0, 20], 1.4, rtol=1e-5)


def test_a_mean_of_nothing_cannot_be_restored_and_does_no_harm() -> None:
    states = np.zeros((1, 2, 2), np.float32)
    states[0, :, 0], states[0, :, 1] = 1, -1
    made = apply_weights(states, np.array([1, 2], np.float32))
    np.testing.assert_array_equal(made, states * np.array([[[1], [2]]], np.float32))


def test_weights_out_of_range_are_refused() -> None:
    weights = np.ones(77, np.float32)
    weights[5] = np.float32(3e38)
    with pytest.raises(ed.RequestError, match=r"the weights of the prompt, up to 3e\+38, leave"):
        apply_weights(STATES * 10, weights)
