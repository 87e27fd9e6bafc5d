"""Textual inversion: words of a prompt that stand for learned vectors (Gal et al. 2022).

Read from safetensors files as diffusers and A1111's web UI write them. Pickles (``.pt``, ``.bin``)
are refused, because loading one runs the code in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgediffusion.errors import RequestError
from edgediffusion.files import bare_name

Float = NDArray[np.float32]

MAX_BYTES: Final = 64 << 20
"""More than any embedding has; a larger file is a checkpoint or a LoRA."""

_PICKLES: Final = (".pt", ".pth", ".bin", ".ckpt")
_PAIR: Final = ("clip_l", "clip_g")
"""The tensors for SDXL's two text encoders."""
_NAMELESS: Final = ("emb_params", *_PAIR, "*")
"""Keys that say what a tensor is for, and not what it is called: the file's name is its name."""

_MADE_FOR: Final[Mapping[int, str]] = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    1280: "SDXL's second text encoder",
}
_DTYPES: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class TextualInversion:
    """An embedding that a prompt may name.

    file : a ``.safetensors`` file. A name without folder is looked for in the current folder, then
        in the user's folder of embeddings.
    name : the word that stands for it in the prompt. None: the name that the file gives
        (diffusers' way), else the file's own name without ending (A1111's way).
    sha256 : what the file must have, as lower-case hex; None: anything.
    """

    file: str | os.PathLike[str]
    name: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Embedding:
    """A loaded textual inversion.

    vectors : float32 of shape (vectors, width).
    second : the same for the second of two text encoders.
    """

    name: str
    vectors: Float
    file: str
    sha256: str
    second: Float | None = None

    def of(self, index: int) -> Embedding:
        """Return what the text encoder of that number takes, from 0."""
        return self if index == 0 or self.second is None else replace(self, vectors=self.second)


def load_embeddings(
    wanted: Sequence[TextualInversion | str | os.PathLike[str]], widths: Sequence[int], most: int
) -> tuple[Embedding, ...]:
    """Load the embeddings of a request; raises RequestError.

    widths : numbers in a vector, for each text encoder; most : vectors that a prompt has room for.
    """
    if isinstance(wanted, (str, os.PathLike, TextualInversion)):
        raise RequestError(f"embeddings must be a list, got {wanted!r}: put it in brackets")
    loaded: dict[str, Embedding] = {}
    for each in wanted:
        entry = each if isinstance(each, TextualInversion) else TextualInversion(each)
        embedding = _load(entry, widths, most)
        key = embedding.name.casefold()
        if key in loaded:
            raise RequestError(
                f"two embeddings are called {embedding.name!r}: {loaded[key].file} and "
                f"{embedding.file}. Give one another name: TextualInversion(file, name=...)"
            )
        loaded[key] = embedding
    return tuple(loaded.values())


def split_names(
    text: str, embeddings: Sequence[Embedding]
) -> Iterator[tuple[int, str, Embedding | None]]:
    """Cut ``text`` at the names of embeddings; yield where each piece starts, and what it names.

    Case does not matter. A name that begins or ends with a letter or digit is not found inside a
    longer word. The longest name wins where several fit.
    """
    longest_first = sorted(embeddings, key=lambda embedding: len(embedding.name), reverse=True)
    names = "|".join(_whole_word(embedding.name) for embedding in longest_first)
    at = 0
    for match in re.finditer(names, text, re.IGNORECASE) if names else ():
        if match.start() > at:
            yield at, text[at : match.start()], None
        yield match.start(), match[0], longest_first[(match.lastindex or 1) - 1]
        at = match.end()
    if at < len(text):
        yield at, text[at:], None


def recipe_entry(embedding: TextualInversion | str | os.PathLike[str]) -> dict[str, str | None]:
    """Name an embedding by file name and hash: in which folder it lies is its owner's business."""
    assert isinstance(embedding, TextualInversion), "a result's request has them filled in"
    file = os.path.basename(embedding.file)
    return {"file": file, "name": embedding.name, "sha256": embedding.sha256}


def embedding_from_recipe(entry: Mapping[str, str]) -> TextualInversion:
    """Read what ``recipe_entry`` wrote; a stranger's picture chooses no folder to look in."""
    return TextualInversion(bare_name(entry["file"]), entry["name"], entry["sha256"])


def user_embeddings() -> Path:
    """Return the folder in which the user keeps embeddings."""
    import platformdirs

    return Path(platformdirs.user_data_dir("edgediffusion", appauthor=False)) / "embeddings"


def _whole_word(name: str) -> str:
    """A pattern with one group, whose number says which name was found."""
    before = r"(?<!\w)" if re.match(r"\w", name) else ""
    after = r"(?!\w)" if re.match(r"\w", name[-1]) else ""
    return f"{before}({re.escape(name)}){after}"


def _load(wanted: TextualInversion, widths: Sequence[int], most: int) -> Embedding:
    path = _find(wanted.file)
    data = _read(path)
    digest = sha256(data).hexdigest()
    if wanted.sha256 not in (None, digest):
        raise RequestError(
            f"{path} has sha256 {digest[:12]}…, expected {str(wanted.sha256)[:12]}…: it is another "
            "embedding of the same name, put the right file in its place"
        )
    tensors = _tensors(data, path)
    keys = _choose(tensors, path, len(widths))
    key = keys[0]
    name = (wanted.name or ("" if key in _NAMELESS else key) or path.stem).strip()
    if not name:
        raise RequestError(f"{path} needs a name: TextualInversion(file, name=...)")
    vectors = [
        _checked(_numbers(tensors[key], path), path, width, most)
        for key, width in zip(keys, widths, strict=True)
    ]
    return Embedding(name, vectors[0], os.fspath(wanted.file), digest, *vectors[1:])


def _find(file: str | os.PathLike[str]) -> Path:
    path = Path(file)
    if path.suffix.lower() in _PICKLES:
        raise RequestError(
            f"{path} is a pickle, which can run any code when it is loaded: refused. Convert it to "
            "safetensors first, in an environment that you trust"
        )
    for place in (path, user_embeddings() / path):
        if place.is_file():
            return place
    raise RequestError(
        f"there is no embedding {path}: neither from the current folder nor in {user_embeddings()}"
    )


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise RequestError(
                f"{path} has {size} bytes, an embedding has at most {MAX_BYTES}: it is something "
                "else, a checkpoint or a LoRA"
            )
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from error


def _tensors(data: bytes, path: Path) -> dict[str, Mapping[str, Any]]:
    from safetensors import SafetensorError, deserialize

    try:
        return dict(deserialize(data))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise RequestError(f"{path} is not a readable safetensors file: {error}") from None


def _choose(tensors: Mapping[str, Any], path: Path, encoders: int) -> tuple[str, ...]:
    """Name the tensor of each text encoder; for a single one, a pair's first will do."""
    if encoders == len(_PAIR):
        if not set(_PAIR) <= set(tensors):
            raise RequestError(
                f"{path} does not hold {' and '.join(_PAIR)}, which this bundle's two text "
                "encoders take: it was made for another model, use one that was made for SDXL"
            )
        return _PAIR
    keys = [key for key in ("emb_params", _PAIR[0]) if key in tensors] or list(tensors)
    if len(keys) != 1:
        held = ", ".join(sorted(tensors)[:5]) or "nothing"
        raise RequestError(
            f"{path} holds {held}, expected one tensor, emb_params, or clip_l with clip_g: it is "
            "not a textual-inversion embedding"
        )
    return (keys[0],)


def _numbers(tensor: Mapping[str, Any], path: Path) -> Float:
    if tensor["dtype"] not in _DTYPES:
        raise RequestError(
            f"{path} holds numbers of type {tensor['dtype']}, expected one of {', '.join(_DTYPES)}"
        )
    flat = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]])
    if tensor["dtype"] == "BF16":  # the upper half of a float32
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.astype(np.float32).reshape(tensor["shape"])


def _checked(vectors: Float, path: Path, width: int, most: int) -> Float:
    shape = vectors.shape
    vectors = vectors[np.newaxis] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or not len(vectors):
        raise RequestError(f"{path} holds numbers of shape {shape}, expected (vectors, width)")
    if vectors.shape[1] != width:
        kind = _MADE_FOR.get(vectors.shape[1], "another model")
        raise RequestError(
            f"{path} holds vectors of width {vectors.shape[1]}, this bundle's text encoder takes "
            f"{width}: it was made for {kind}, use one that was made for this model"
        )
    if len(vectors) > most:
        raise RequestError(f"{path} holds {len(vectors)} vectors, a prompt has room for {most}")
    if not np.isfinite(vectors).all():
        raise RequestError(f"{path} holds NaN or infinity: it is damaged, download it again")
    return vectors
