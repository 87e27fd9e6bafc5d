"""The tokenizer of a checkpoint as one ``tokenizer.json``, which the tokenizers package reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import tokenizers

from edgediffusion.errors import CheckpointError
from edgediffusion.manifest import TokenizerSpec
from edgediffusion_export.source import load_tokenizer

TOKENIZER_FILE: Final = "tokenizer/tokenizer.json"


def export_tokenizer(checkpoint: Path, tokens: int) -> tuple[TokenizerSpec, bytes]:
    """Return the ids that the pipeline needs and the bytes of ``tokenizer.json``.

    transformers builds the pipeline, from ``tokenizer.json`` or from ``vocab.json`` and
    ``merges.txt``; padding and cutting are left to the runtime. ``tokens`` is what the text
    encoder takes.
    """
    loaded = load_tokenizer(checkpoint)
    ids = {name: getattr(loaded, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    missing = [name for name, number in ids.items() if number is None]
    if missing:
        raise CheckpointError(
            f"{checkpoint / 'tokenizer'} defines no {' or '.join(missing)} token: add it to "
            "tokenizer_config.json"
        )
    pipeline = tokenizers.Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    pipeline.no_padding()
    pipeline.no_truncation()
    text = json.dumps(json.loads(pipeline.to_str()), ensure_ascii=False, separators=(",", ":"))
    length = min(int(loaded.model_max_length), tokens)
    return TokenizerSpec(file=TOKENIZER_FILE, length=length, **ids), text.encode()
