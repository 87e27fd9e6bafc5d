"""Token ids equal transformers', for every kind of tokenizer that Stable Diffusion has used.

The real vocabulary is taken where the repository has it beside itself, else the demo's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import T5Tokenizer

from benchmarks.checkpoints import read_merges, write_tokenizer
from benchmarks.make_checkpoint import CLIP_VOCABULARY
from edgediffusion.errors import CheckpointError
from edgediffusion.tokenizer import Tokenizer
from edgediffusion_export.source import load_tokenizer
from edgediffusion_export.tokenizer import T5_IDS, export_tokenizer, pack_tokenizer
from tests.texts import NUMBERS, WORDS, awkward_texts

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
    spec, data = export_tokenizer(folder, 77)
    assert (spec.pad == 0) == ("sd2" in request.param or "sdxl 2" in request.param)
    (folder / "tokenizer.json").write_bytes(data)
    return Tokenizer(spec, folder / "tokenizer.json"), load_tokenizer(folder)


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
    spec, data = export_tokenizer(tmp_path, 77)
    assert (spec.bos, spec.eos, spec.pad, spec.length) == (49406, 49407, 49407, 77)
    (tmp_path / "tokenizer.json").write_bytes(data)
    ours = Tokenizer(spec, tmp_path / "tokenizer.json")
    assert ours.encode("a photo of a cat").ids[0, :7].tolist() == [
        *(49406, 320, 1125, 539, 320, 2368, 49407)
    ]
    assert ours.encode("a photo of a dog").ids[0, 5] == 1929
    assert ours.encode("!").ids[0, 1] == 256


# --- T5 ------------------------------------------------------------------------------------------


def train_unigram(texts: list[str]) -> list[tuple[str, float]]:
    """A small SentencePiece-like vocabulary with T5's first three tokens."""
    model = tokenizers.Tokenizer(tokenizers.models.Unigram())
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=160,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return [tuple(entry) for entry in json.loads(model.to_str())["model"]["vocab"]]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Pair]:
    folder = tmp_path_factory.mktemp("t5")
    corpus = [" ".join(WORDS), " ".join(NUMBERS[:10])]  # most of Unicode stays unknown to it
    T5Tokenizer(vocab=train_unigram(corpus), extra_ids=8).save_pretrained(folder)
    theirs = T5Tokenizer.from_pretrained(folder)

    def open_with(length: int) -> Pair:
        spec, data = pack_tokenizer(theirs, length, T5_IDS, folder)
        (folder / "packed.json").write_bytes(data)
        return Tokenizer(spec, folder / "packed.json"), theirs

    return open_with


@pytest.mark.parametrize(("length", "count"), [(8, 2_000), (77, STRINGS), (256, 2_000)])
def test_t5_ids_are_those_of_transformers_in_volume(
    t5: Callable[[int], Pair], length: int, count: int
) -> None:
    ours, theirs = t5(length)
    assert (ours.spec.bos, ours.spec.eos, ours.spec.pad) == (None, 1, 0)
    assert ours.room == length - 1
    assert mismatches(ours, theirs, list(awkward_texts(count, seed=length))) == []


@given(text=TEXT)
def test_t5_ids_of_any_text(t5: Callable[[int], Pair], text: str) -> None:
    assert mismatches(*t5(32), [text]) == []


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
