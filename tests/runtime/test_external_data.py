from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgediffusion.errors import EngineError, UnsafePath
from edgediffusion.external_data import _locations, check_locations, external_locations


def field(number: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def model_with(location: bytes) -> bytes:
    entry = field(1, b"location") + field(2, location)
    offset = field(1, b"offset") + field(2, b"4096")
    return b"\x08\x0a" + field(7, field(5, field(13, entry) + field(13, offset)))


def test_locations_are_found(tmp_path: Path) -> None:
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(model_with(b"weights.safetensors"))
    assert external_locations(graph) == {"weights.safetensors"}
    check_locations(graph)


def test_locations_inside_a_subgraph_are_found(tmp_path: Path) -> None:
    tensor = field(13, field(1, b"location") + field(2, b"../x"))
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(field(7, field(1, field(5, field(6, field(5, tensor))))))
    assert external_locations(graph) == {"../x"}


@pytest.mark.parametrize("location", [b"../w", b"/etc/passwd", b"sub/w", b"..", b"a\\b", b""])
def test_a_location_outside_the_folder_is_refused(tmp_path: Path, location: bytes) -> None:
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(model_with(location))
    with pytest.raises(UnsafePath, match="outside its own folder: refused"):
        check_locations(graph)


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"")
    inside = tmp_path / "unet"
    inside.mkdir()
    (inside / "w").symlink_to(tmp_path / "secret")
    (inside / "graph.onnx").write_bytes(model_with(b"w"))
    with pytest.raises(UnsafePath, match="outside its own folder"):
        check_locations(inside / "graph.onnx")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(model_with(b"weights.safetensors")[:-3])
    with pytest.raises(EngineError, match="is not an ONNX file, or it is damaged"):
        external_locations(graph)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"none\.onnx cannot be read"):
        external_locations(tmp_path / "none.onnx")


@given(raw=st.binary(max_size=200))
def test_any_bytes_end_in_locations_or_a_plain_error(raw: bytes) -> None:
    with suppress(IndexError, ValueError):
        list(_locations(memoryview(raw), "model"))
