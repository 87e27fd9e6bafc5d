from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgediffusion.errors import CheckpointError
from edgediffusion.manifest import TokenizerSpec
from edgediffusion.tokenizer import Tokenizer
from edgediffusion_export.source import load_tokenizer
from edgediffusion_export.tokenizer import export_tokenizer

TEXTS = ["", "a red circle", "RED!! circle's  \n blue", "zażółć 你好 😀‍🔥", "word " * 100, "a!b !"]


def ids(spec: TokenizerSpec, data: bytes, folder: Path, text: str) -> list[int]:
    (folder / "tokenizer.json").write_bytes(data)
    return [int(i) for i in Tokenizer(spec, folder / "tokenizer.json").encode(text).ids[0]]


def their_ids(folder: Path, text: str) -> list[int]:
    """Those of transformers."""
    made = load_tokenizer(folder)(text, padding="max_length", max_length=77, truncation=True)
    found: list[int] = made["input_ids"]
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_the_ids_are_those_of_transformers(checkpoint: Path, tmp_path: Path, text: str) -> None:
    spec, data = export_tokenizer(checkpoint / "tokenizer", 77)
    assert ids(spec, data, tmp_path, text) == their_ids(checkpoint / "tokenizer", text)


@pytest.mark.parametrize("text", TEXTS)
def test_a_padding_token_of_its_own_is_kept(broken: Path, tmp_path: Path, text: str) -> None:
    """Stable Diffusion 2 pads with "!", which is then special wherever a prompt has it."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = broken / "tokenizer" / name
        if path.is_file():
            path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "!"}))
    (broken / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    spec, data = export_tokenizer(broken / "tokenizer", 77)
    assert spec.pad == json.loads((broken / "tokenizer" / "vocab.json").read_text())["!"]
    assert ids(spec, data, tmp_path, text) == their_ids(broken / "tokenizer", text)


def test_a_ready_made_file_gives_the_same_ids(broken: Path, tmp_path: Path) -> None:
    spec, data = export_tokenizer(broken / "tokenizer", 77)
    tokenizer = load_tokenizer(broken / "tokenizer")
    tokenizer("x", padding="max_length", truncation=True, max_length=5)  # leaves its settings on
    tokenizer.backend_tokenizer.save(str(broken / "tokenizer" / "tokenizer.json"))
    again, from_json = export_tokenizer(broken / "tokenizer", 77)
    assert again == spec
    assert json.loads(from_json)["padding"] is None
    assert json.loads(from_json)["truncation"] is None
    for text in TEXTS:
        assert ids(again, from_json, tmp_path, text) == ids(spec, data, tmp_path, text)


def test_the_text_encoder_limits_the_length(checkpoint: Path) -> None:
    assert export_tokenizer(checkpoint / "tokenizer", 20)[0].length == 20


def test_a_damaged_vocabulary_is_named(broken: Path) -> None:
    (broken / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    (broken / "tokenizer" / "vocab.json").write_text("{")
    with pytest.raises(CheckpointError, match="does not load as a CLIP tokenizer"):
        export_tokenizer(broken / "tokenizer", 77)
