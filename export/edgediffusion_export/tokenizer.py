"""The tokenizer of a checkpoint as one ``tokenizer.json``, which the tokenizers package reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from edgediffusion.errors import CheckpointError
from edgediffusion.manifest import TokenizerSpec
from edgediffusion_export.source import load_tokenizer

TOKENIZER_FILE: Final = "tokenizer.json"
CLIP_IDS: Final = ("bos", "eos", "pad")
T5_IDS: Final = ("eos", "pad")
"""The special tokens that a tokenizer must have; T5 begins no text with one."""


def export_tokenizer(folder: Path, tokens: int) -> tuple[TokenizerSpec, bytes]:
    """Return what the pipeline needs to know of a CLIP tokenizer, and its ``tokenizer.json``.

    transformers builds the pipeline, from ``tokenizer.json`` or from ``vocab.json`` and
    ``merges.txt``; padding and cutting are left to the runtime. ``tokens`` is what the text
    encoder takes. Raises CheckpointError.
    """
    loaded = load_tokenizer(folder)
    length = min(int(loaded.model_max_length), tokens)
    return pack_tokenizer(loaded, length, CLIP_IDS, folder)


def pack_tokenizer(
    loaded: Any, length: int, needed: tuple[str, ...], where: Path
) -> tuple[TokenizerSpec, bytes]:
    """Pack a transformers tokenizer of any kind; raises CheckpointError if it lacks an id.

    A pad token that is also a character (Stable Diffusion 2 pads with ``!``) is registered as a
    special token and goes into the file as such, so that every ``!`` of a prompt becomes it.
    """
    ids = {name: getattr(loaded, f"{name}_token_id") for name in CLIP_IDS}
    missing = [name for name in needed if ids[name] is None]
    if missing:
        raise CheckpointError(
            f"{where} defines no {' or '.join(missing)} token: add it to tokenizer_config.json"
        )
    # as plain data: the tokenizers package would round a Unigram model's scores on the way
    pipeline = json.loads(loaded.backend_tokenizer.to_str())
    pipeline |= {"padding": None, "truncation": None}
    text = json.dumps(pipeline, ensure_ascii=False, separators=(",", ":"))
    file = f"{where.name}/{TOKENIZER_FILE}"
    return TokenizerSpec(file=file, length=length, **ids), text.encode()
