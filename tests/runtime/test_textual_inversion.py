from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import edgediffusion as ed
from edgediffusion import textual_inversion
from edgediffusion.textual_inversion import (
    Embedding,
    TextualInversion,
    load_embeddings,
    recipe_entry,
    split_names,
)

WIDTH = 16
ONE = np.linspace(-1, 1, WIDTH, dtype=np.float32)
TWO = np.stack([ONE, -ONE])


def write(path: Path, **tensors: np.ndarray[Any, Any]) -> Path:
    save_file(tensors, path)
    return path


def load(*wanted: Any, width: int = WIDTH, most: int = 75) -> tuple[Embedding, ...]:
    return load_embeddings(wanted, [width], most)


# --- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "name", "vectors"),
    [
        ({"<cat>": ONE}, "<cat>", 1),  # diffusers, one vector
        ({"<cat>": ONE[None]}, "<cat>", 1),
        ({"<cat>": TWO}, "<cat>", 2),
        ({"emb_params": TWO}, "my cat", 2),  # A1111 and the sites that share such files
        ({"*": TWO}, "my cat", 2),
        ({"clip_l": TWO, "clip_g": np.ones((2, 40), np.float32)}, "my cat", 2),  # SDXL
        ({"emb_params": TWO, "step": ONE}, "my cat", 2),
    ],
)
def test_formats(tmp_path: Path, tensors: dict[str, Any], name: str, vectors: int) -> None:
    path = write(tmp_path / "my cat.safetensors", **tensors)
    (found,) = load(path)
    assert found.name == name
    assert found.vectors.shape == (vectors, WIDTH)
    assert found.vectors.dtype == np.float32
    np.testing.assert_array_equal(found.vectors, TWO[:vectors])
    assert found.sha256 == sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_float_is_read(tmp_path: Path, dtype: type) -> None:
    (found,) = load(write(tmp_path / "a.safetensors", emb_params=TWO.astype(dtype)))
    np.testing.assert_array_equal(found.vectors, TWO.astype(dtype).astype(np.float32))


def test_bfloat16_is_read(tmp_path: Path) -> None:
    """NumPy has no bfloat16: it is the upper half of a float32."""
    upper = (TWO.view(np.uint32) >> 16).astype(np.uint16)
    entry = {"dtype": "BF16", "shape": TWO.shape, "data_offsets": [0, upper.nbytes]}
    header = json.dumps({"emb_params": entry}).encode()
    data = len(header).to_bytes(8, "little") + header + upper.tobytes()
    (tmp_path / "a.safetensors").write_bytes(data)
    (found,) = load(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(found.vectors, (upper.astype(np.uint32) << 16).view(np.float32))
    np.testing.assert_allclose(found.vectors, TWO, rtol=0.01)


def test_a_name_may_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", **{"<cat>": ONE})
    first, second = load(path, TextualInversion(path, name=" my style "))
    assert (first.name, second.name) == ("<cat>", "my style")
    assert recipe_entry(TextualInversion(path, "cat", "0a")) == {
        "file": "a.safetensors",
        "name": "cat",
        "sha256": "0a",
    }


def test_a_bare_name_is_found_in_the_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(textual_inversion, "user_embeddings", lambda: tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "only-there.safetensors", emb_params=ONE)
    assert load("only-there.safetensors")[0].name == "only-there"


def test_the_users_folder_has_a_fixed_place() -> None:
    assert textual_inversion.user_embeddings().parts[-2:] == ("edgediffusion", "embeddings")


# --- bad files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": ONE, "b": ONE}, "holds a, b, expected one tensor, emb_params, or clip_l with clip_"),
        ({"a": ONE.astype(np.int64)}, "holds numbers of type I64, expected one of F64, F32, F16"),
        ({"a": np.ones((2, 1024), np.float32)}, "of width 1024, .* 16: .* Stable Diffusion 2"),
        ({"a": np.ones((2, 768), np.float32)}, "made for Stable Diffusion 1, use one"),
        ({"a": np.ones((2, 17), np.float32)}, "made for another model"),
        ({"a": np.ones((2, 2, WIDTH), np.float32)}, r"of shape \(2, 2, 16\), expected \(vect"),
        ({"a": np.ones((0, WIDTH), np.float32)}, r"of shape \(0, 16\), expected"),
        ({"a": np.array(1, np.float32)}, r"of shape \(\), expected"),
        ({"a": np.ones((76, WIDTH), np.float32)}, "holds 76 vectors, a prompt has room for 75"),
        ({"a": ONE * np.float32(np.nan)}, "holds NaN or infinity: it is damaged"),
        ({" ": ONE}, r"a\.safetensors needs a name: TextualInversion\(file, name=\.\.\.\)"),
        ({}, "holds nothing, expected one tensor"),
    ],
)  # fmt: skip
def test_files_that_are_no_embedding(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(ed.RequestError, match=message):
        load(write(tmp_path / "a.safetensors", **tensors))


def test_two_text_encoders_take_a_pair(tmp_path: Path) -> None:
    second = np.full((2, 24), 3, np.float32)
    path = write(tmp_path / "a.safetensors", clip_g=second, clip_l=TWO)
    (embedding,) = load_embeddings([path], [WIDTH, 24], 75)
    np.testing.assert_array_equal(embedding.of(0).vectors, TWO)
    np.testing.assert_array_equal(embedding.of(1).vectors, second)
    assert embedding.name == "a"
    with pytest.raises(ed.RequestError, match="of width 24, this bundle's text encoder takes 32"):
        load_embeddings([path], [WIDTH, 32], 75)
    single = write(tmp_path / "b.safetensors", emb_params=ONE)
    with pytest.raises(
        ed.RequestError, match="does not hold clip_l and clip_g, which this bundle'"
    ):
        load_embeddings([single], [WIDTH, 24], 75)


def test_damage_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", emb_params=ONE)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ed.RequestError, match="is not a readable safetensors file"):
        load(path)


@pytest.mark.parametrize("ending", ["pt", "bin", "ckpt", "PTH"])
def test_pickles_are_refused(tmp_path: Path, ending: str) -> None:
    with pytest.raises(ed.RequestError, match="is a pickle, which can run any code when it is lo"):
        load(tmp_path / f"a.{ending}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ed.RequestError, match=r"there is no embedding .*gone\.safetensors: neither"
    ):
        load(tmp_path / "gone.safetensors")


def test_a_checkpoint_is_no_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textual_inversion, "MAX_BYTES", 100)
    with pytest.raises(ed.RequestError, match="bytes, an embedding has at most 100: it is somethi"):
        load(write(tmp_path / "a.safetensors", emb_params=ONE))


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.safetensors", emb_params=ONE)

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ed.RequestError, match=r"a\.safetensors cannot be read: Permission denied"):
        load(path)


def test_another_file_of_the_same_name_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", emb_params=ONE)
    with pytest.raises(
        ed.RequestError, match=r"has sha256 .*, expected 0000.*: it is another embed"
    ):
        load(TextualInversion(path, sha256="0" * 64))


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "Cat.safetensors", emb_params=ONE)
    with pytest.raises(ed.RequestError, match=r"two embeddings are called 'cat': .*Cat\.safetens"):
        load(path, TextualInversion(path, name="cat"))


@pytest.mark.parametrize("wanted", ["a.safetensors", Path("a.safetensors"), TextualInversion("a")])
def test_a_single_embedding_is_still_a_list(wanted: Any) -> None:
    with pytest.raises(
        ed.RequestError, match=r"embeddings must be a list, got .*: put it in brack"
    ):
        load_embeddings(wanted, [WIDTH], 75)


@given(data=st.binary(max_size=64))
def test_any_bytes_are_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(ed.RequestError):
        load(path)


# --- names in prompts ----------------------------------------------------------------------------


def named(*names: str) -> tuple[Embedding, ...]:
    return tuple(Embedding(name, TWO, "", "") for name in names)


def cut(text: str, *names: str) -> list[tuple[int, str, str | None]]:
    pieces = split_names(text, named(*names))
    return [(at, piece, found and found.name) for at, piece, found in pieces]


def test_names_are_found_in_any_case() -> None:
    assert cut("a <CAT>, my cat", "<cat>", "cat") == [
        (0, "a ", None),
        (2, "<CAT>", "<cat>"),
        (7, ", my ", None),
        (12, "cat", "cat"),
    ]


def test_a_word_is_not_found_inside_another() -> None:
    assert cut("catalog bobcat cat's", "cat") == [
        (0, "catalog bobcat ", None),
        (15, "cat", "cat"),
        (18, "'s", None),
    ]
    assert cut("a<x>b", "<x>") == [(0, "a", None), (1, "<x>", "<x>"), (4, "b", None)]


def test_the_longest_name_wins() -> None:
    assert [name for _, _, name in cut("my cat", "my", "my cat", "cat")] == ["my cat"]


def test_letters_whose_case_is_odd_do_no_harm() -> None:
    """Python's regular expressions take a dotted capital I for an i."""
    assert [name for _, _, name in cut("İnk ink", "ink")] == ["ink", None, "ink"]


def test_without_embeddings_a_text_is_one_piece() -> None:
    assert cut("a cat") == [(0, "a cat", None)]
    assert cut("") == []
    assert cut("", "cat") == []


@given(text=st.text(), names=st.lists(st.text(min_size=1), max_size=4, unique_by=str.casefold))
def test_pieces_add_up_to_the_text(text: str, names: list[str]) -> None:
    pieces = cut(text, *names)
    assert "".join(piece for _, piece, _ in pieces) == text
    assert all(text[at : at + len(piece)] == piece for at, piece, _ in pieces)
