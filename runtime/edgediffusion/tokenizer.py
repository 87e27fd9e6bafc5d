"""Text to token ids, as CLIP's text encoders expect them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgediffusion.errors import IntegrityError, RequestError
from edgediffusion.manifest import TokenizerSpec


@dataclass(frozen=True)
class Tokens:
    """One tokenized text.

    ids : int64 array of shape (1, length), with begin, end and padding.
    count : tokens of the whole text, without begin and end.
    dropped : the end of the text that did not fit, empty when all did.
    """

    ids: NDArray[np.int64]
    count: int
    dropped: str


class Tokenizer:
    """A ``tokenizer.json`` with the lengths and ids that the manifest gives."""

    def __init__(self, spec: TokenizerSpec, path: Path) -> None:
        import tokenizers

        self._spec = spec
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise IntegrityError(f"{path} is not a readable tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str) -> Tokens:
        """Tokenize ``text``; what does not fit is cut at the end and reported as ``dropped``."""
        spec = self._spec
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise RequestError(
                f"the prompt is not valid Unicode text ({error}): it holds half of a surrogate "
                "pair or undecodable bytes, pass proper UTF-8"
            ) from None
        room = spec.length - 2
        body = encoding.ids[:room]
        padding = [spec.pad] * (room - len(body))
        ids = np.array([[spec.bos, *body, spec.eos, *padding]], dtype=np.int64)
        dropped = text[encoding.offsets[room][0] :] if len(encoding.ids) > room else ""
        return Tokens(ids, len(encoding.ids), dropped)
