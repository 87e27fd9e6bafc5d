"""Text to token ids, as the text encoders expect them: CLIP's byte pairs and T5's Unigram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgediffusion.errors import IntegrityError, RequestError
from edgediffusion.manifest import TokenizerSpec

if TYPE_CHECKING:
    import tokenizers


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
        self.spec = spec
        try:
            self._tokenizer = _open(path)
        except Exception as error:  # tokenizers raises bare Exception
            raise IntegrityError(f"{path} is not a readable tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @property
    def room(self) -> int:
        """How many tokens of a text fit, besides those that begin and end it."""
        return self.spec.length - (1 if self.spec.bos is None else 2)

    def encode(self, text: str) -> Tokens:
        """Tokenize ``text``; what does not fit is cut at the end and reported as ``dropped``.

        Raises RequestError for text that is not valid Unicode.
        """
        ids, starts = self.split(text)
        dropped = text[starts[self.room] :] if len(ids) > self.room else ""
        return Tokens(self.frame(ids[: self.room]), len(ids), dropped)

    def split(self, text: str) -> tuple[list[int], list[int]]:
        """Return the ids of all tokens of ``text``, and where in it each token starts.

        Raises RequestError for text that is not valid Unicode.
        """
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise RequestError(
                f"the prompt is not valid Unicode text ({error}): it holds half of a surrogate "
                "pair or undecodable bytes, pass proper UTF-8"
            ) from None
        return encoding.ids, [start for start, _ in encoding.offsets]

    def frame(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """Put begin, end and padding round at most ``room`` ids; int64 of shape (1, length)."""
        spec = self.spec
        begin = [] if spec.bos is None else [spec.bos]
        padding = [spec.pad] * (self.room - len(ids))
        return np.array([[*begin, *ids, spec.eos, *padding]], dtype=np.int64)


def _open(path: Path) -> tokenizers.Tokenizer:
    """Read a ``tokenizer.json``, the scores of a Unigram model to the last bit.

    tokenizers 0.23 reads one number in eight one bit off. Where several ways to split a word score
    alike, that bit decides.
    """
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer.from_file(str(path))
    if isinstance(tokenizer.model, models.Unigram):
        model = msgspec.json.decode(path.read_bytes())["model"]
        scores = [(token, score) for token, score in model["vocab"]]
        tokenizer.model = models.Unigram(scores, model["unk_id"], model.get("byte_fallback", False))
    return tokenizer
