"""Token ids equal transformers', for every kind of tokenizer that Stable Diffusion has used.

The real vocabulary is taken where the repository has it beside itself, else the demo's.
"""

from __future__ import annotations

import io
import json
import random
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import T5Tokenizer

from benchmarks.checkpoints import read_merges, write_tokenizer
from benchmarks.make_checkpoint import CLIP_VOCABULARY
from edgediffusion.errors import CheckpointError
from edgediffusion.tokenizer import Tokenizer
from edgediffusion_export.source import load_tokenizer
from edgediffusion_export.tokenizer import T5_IDS, export_tokenizer, pack_tokenizer
from tests.texts import CASES, EMOJI, MARKS, NUMBERS, SPECIALS, WORDS, awkward_texts

DEMO = Path(__file__).parents[2] / "models" / "shapes" / "checkpoint" / "tokenizer"
STRINGS = 20_000
TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200)
END = "<|endoftext|>"


def added(content: str, normalized: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": content, "normalized": normalized} | plain


def decoder(folder: Path) -> dict[str, Any]:
    """The newer notation of SDXL's files: the special tokens by their ids."""
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    tokens = {"!": False, "<|startoftext|>": True, END: True}
    return {str(vocabulary[text]): added(text, normalized) for text, normalized in tokens.items()}


# kind -> what its tokenizer_config.json and its special_tokens_map.json say of the pad token
KINDS: dict[str, tuple[str, str | None]] = {
    "sd1, sdxl 1": (END, END),
    "sd2": (END, "!"),  # the two files disagree, the map wins
    "sdxl 2": ("!", "!"),
    "sdxl 2, newer files": ("!", None),
}
Pair = tuple[Tokenizer, Any]


def write_kind(folder: Path, kind: str) -> None:
    """Write vocabulary, merges and settings, without tokenizer.json, as the hub's folders are."""
    if CLIP_VOCABULARY.is_file():
        write_tokenizer(folder, read_merges(CLIP_VOCABULARY))
    else:
        lines = (DEMO / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
        size = len(json.loads((DEMO / "vocab.json").read_text(encoding="utf-8")))
        write_tokenizer(folder, [(a, b) for a, b in (line.split() for line in lines)], size)
    config, mapped = (
        folder / name for name in ("tokenizer_config.json", "special_tokens_map.json")
    )
    in_config, in_map = KINDS[kind]
    settings = json.loads(config.read_text()) | {"pad_token": in_config}
    if in_map is None:
        mapped.unlink()
        settings |= {"added_tokens_decoder": decoder(folder)}
    else:
        mapped.write_text(json.dumps(json.loads(mapped.read_text()) | {"pad_token": in_map}))
    config.write_text(json.dumps(settings))


@pytest.fixture(scope="module", params=KINDS)
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The runtime's tokenizer as the exporter wrote it, and transformers' own."""
    folder = tmp_path_factory.mktemp("clip")
    write_kind(folder / "tokenizer", request.param)
    spec, data = export_tokenizer(folder / "tokenizer", 77)
    assert (spec.pad == 0) == ("sd2" in request.param or "sdxl 2" in request.param)
    (folder / "tokenizer.json").write_bytes(data)
    return Tokenizer(spec, folder / "tokenizer.json"), load_tokenizer(folder / "tokenizer")


def padded(theirs: Any, texts: list[str], length: int) -> list[list[int]]:
    found = theirs(texts, padding="max_length", max_length=length, truncation=True)
    ids: list[list[int]] = found["input_ids"]
    return ids


def mismatches(ours: Tokenizer, theirs: Any, texts: list[str]) -> list[str]:
    wanted = padded(theirs, texts, ours.spec.length)
    return [
        text
        for text, row in zip(texts, wanted, strict=True)
        if ours.encode(text).ids[0].tolist() != row
    ]


def test_clip_ids_are_those_of_transformers_in_volume(clip: Pair) -> None:
    texts = list(awkward_texts(STRINGS, seed=2026))
    assert len(texts) == STRINGS
    assert sum(clip[0].encode(text).dropped != "" for text in texts[:1000]) > 50
    assert mismatches(*clip, texts) == []


@settings(deadline=None)
@given(text=TEXT)
def test_clip_ids_of_any_text(clip: Pair, text: str) -> None:
    assert mismatches(*clip, [text]) == []


def test_an_exclamation_mark_is_padding_where_it_is_the_pad_token(clip: Pair) -> None:
    ours, _ = clip
    vocabulary = json.loads(ours._tokenizer.to_str())["model"]["vocab"]
    ids = ours.encode("a!b !").ids[0, 1:5].tolist()
    if ours.spec.pad == 0:
        assert vocabulary["!"] == 0
        assert (ids[1], ids[3]) == (0, 0)
        assert ours.encode("!!!").count == 3
    else:
        # byte pairs: "!" at the end of a word, and what the vocabulary merges
        assert (ids[1], ids[3]) == (vocabulary["!</w>"],) * 2
        assert 0 not in ids


@pytest.mark.skipif(not CLIP_VOCABULARY.is_file(), reason="needs CLIP's real vocabulary")
def test_well_known_ids(tmp_path: Path) -> None:
    """As printed in CLIP's and transformers' own documentation."""
    write_kind(tmp_path / "tokenizer", "sd1, sdxl 1")
    spec, data = export_tokenizer(tmp_path / "tokenizer", 77)
    assert (spec.bos, spec.eos, spec.pad, spec.length) == (49406, 49407, 49407, 77)
    (tmp_path / "tokenizer.json").write_bytes(data)
    ours = Tokenizer(spec, tmp_path / "tokenizer.json")
    assert ours.encode("a photo of a cat").ids[0, :7].tolist() == [
        *(49406, 320, 1125, 539, 320, 2368, 49407)
    ]
    assert ours.encode("a photo of a dog").ids[0, 5] == 1929
    assert ours.encode("!").ids[0, 1] == 256


# --- T5 ------------------------------------------------------------------------------------------


def train_unigram(texts: list[str]) -> bytes:
    """A small model of SentencePiece's, with T5's normalization and its first three tokens."""
    sentencepiece.set_random_generator_seed(0)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="unigram",
        vocab_size=1_000,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,  # no progress
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer folder as the hub's checkpoints have it: spiece.model, no tokenizer.json."""
    folder = tmp_path_factory.mktemp("t5")
    draw = random.Random(5)
    known = [*WORDS, *CASES, *MARKS, *EMOJI, *NUMBERS]  # most of Unicode stays unknown to it
    corpus = [" ".join(draw.choices(known, k=8)) for _ in range(2_000)]
    (folder / "spiece.model").write_bytes(train_unigram(corpus))
    tokens = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    config = tokens | {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def t5(t5_folder: Path) -> Callable[[int], Pair]:
    theirs = T5Tokenizer.from_pretrained(t5_folder)

    @cache
    def open_with(length: int) -> Pair:
        spec, data = pack_tokenizer(theirs, length, T5_IDS, t5_folder)
        packed = t5_folder.parent / f"{t5_folder.name}-{length}.json"
        packed.write_bytes(data)
        return Tokenizer(spec, packed), theirs

    return open_with


@pytest.mark.parametrize(("length", "count"), [(8, 2_000), (77, STRINGS), (256, 2_000)])
def test_t5_ids_are_those_of_transformers_in_volume(
    t5: Callable[[int], Pair], length: int, count: int
) -> None:
    ours, theirs = t5(length)
    assert (ours.spec.bos, ours.spec.eos, ours.spec.pad) == (None, 1, 0)
    assert ours.room == length - 1
    assert mismatches(ours, theirs, list(awkward_texts(count, seed=length))) == []


@settings(deadline=None)
@given(text=TEXT)
def test_t5_ids_of_any_text(t5: Callable[[int], Pair], text: str) -> None:
    assert mismatches(*t5(32), [text]) == []


# Where transformers leaves SentencePiece, on purpose or not; what diffusers does is what counts:
# special tokens in a text, code points of one letter of which the model knows only the first,
# and the control code that one of the two takes for a space.
LEAVES = ("cat</s>", "<extra_id_0>", "e\u0301\u0323", "\xa0\u200d", "\u1112\u1161", "a\x85b")


def agreed(text: str) -> bool:
    """Whether transformers means to do with a text what SentencePiece does."""
    special = any(token in text for token in SPECIALS if token.startswith("<"))
    return not special and "\x85" not in text and not any(map(joins, text))


def joins(letter: str) -> bool:
    """Whether a code point belongs to the letter before it: a mark, a joiner, a Hangul vowel."""
    is_mark = unicodedata.category(letter).startswith("M")
    return is_mark or letter in "\u200c\u200d" or "\u1160" <= letter <= "\u11ff"


@pytest.fixture(scope="module")
def pieces(t5_folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(t5_folder / "spiece.model"))


def test_t5_ids_are_those_of_sentencepiece_in_volume(
    t5: Callable[[int], Pair], pieces: sentencepiece.SentencePieceProcessor
) -> None:
    ours, _ = t5(77)
    texts = [text for text in awkward_texts(2 * STRINGS, seed=78) if agreed(text)]
    assert len(texts) > STRINGS
    wanted = pieces.encode(texts)
    pairs = zip(texts, wanted, strict=True)
    assert [text for text, ids in pairs if ours.split(text)[0] != ids] == []
    known = [pieces.unk_id() not in ids for ids in wanted]
    assert sum(known) > len(texts) / 4, "a test that knows no letter compares nothing"


@settings(deadline=None)
@given(text=TEXT.filter(agreed))
def test_t5_ids_of_any_text_are_those_of_sentencepiece(
    t5: Callable[[int], Pair], pieces: sentencepiece.SentencePieceProcessor, text: str
) -> None:
    assert t5(32)[0].split(text)[0] == pieces.encode(text)


@pytest.mark.parametrize("text", LEAVES)
def test_where_transformers_leaves_sentencepiece_we_follow_transformers(
    t5: Callable[[int], Pair], pieces: sentencepiece.SentencePieceProcessor, text: str
) -> None:
    ours, theirs = t5(32)
    assert not agreed(text)
    assert mismatches(ours, theirs, [text]) == []
    assert ours.split(text)[0] != pieces.encode(text)


def test_t5_normalizes_as_its_model_says(t5: Callable[[int], Pair]) -> None:
    ours, _ = t5(32)
    assert json.loads(ours._tokenizer.to_str())["normalizer"]["type"] == "Precompiled"
    assert ours.split("ｆｕｌｌ ﬁne　①")[0] == ours.split("full fine 1")[0]  # noqa: RUF001


def test_scores_are_read_to_the_last_bit(t5: Callable[[int], Pair]) -> None:
    ours, theirs = t5(8)
    mine, wanted = (
        json.loads(each.to_str())["model"]["vocab"]
        for each in (ours._tokenizer, theirs.backend_tokenizer)
    )
    assert mine == wanted


def test_a_t5_text_ends_and_is_padded_but_does_not_begin(t5: Callable[[int], Pair]) -> None:
    ours, _ = t5(16)
    tokens = ours.encode("a photo")
    assert tokens.ids.dtype == np.int64
    assert tokens.ids.shape == (1, 16)
    assert tokens.ids[0, tokens.count] == 1
    assert (tokens.ids[0, tokens.count + 1 :] == 0).all()


def test_a_clip_tokenizer_without_a_begin_is_refused(t5: Callable[[int], Pair]) -> None:
    _, theirs = t5(16)
    with pytest.raises(CheckpointError, match=r"folder defines no bos token: add it to tokenizer_"):
        pack_tokenizer(theirs, 77, ("bos", "eos", "pad"), Path("folder"))
