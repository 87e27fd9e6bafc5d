"""Read from an ONNX file, without the onnx package, where its external tensors lie.

ONNX Runtime refuses a location that leaves the model's folder, but in words of its own and only
once it loads the file. This walks the few protobuf fields that matter (onnx.proto: ModelProto,
GraphProto, NodeProto, AttributeProto, TensorProto, StringStringEntryProto).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edgediffusion.errors import EngineError, UnsafePath

# message -> field number -> message of that field
_NESTED: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_ENTRY_KEY: Final = 1
_ENTRY_VALUE: Final = 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def external_locations(path: Path) -> set[str]:
    """Return the ``location`` of every external tensor in the ONNX file at ``path``.

    Raises EngineError when the file is not a readable protobuf message.
    """
    try:
        return set(_locations(memoryview(path.read_bytes()), "model"))
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror or error}") from error
    except (IndexError, ValueError, RecursionError) as error:
        raise EngineError(f"{path} is not an ONNX file, or it is damaged ({error})") from None


def check_locations(path: Path) -> None:
    """Raise UnsafePath if a tensor's data lies anywhere but in a plain file beside the graph."""
    for location in sorted(external_locations(path)):
        beside = path.parent / location
        is_plain_name = Path(location).name == location and "\\" not in location
        if not is_plain_name or beside.resolve().parent != path.parent.resolve():
            raise UnsafePath(
                f"{path} keeps tensors in {location!r}, outside its own folder: refused. "
                "Get the bundle from a source you trust, or export it again"
            )


def _locations(data: memoryview, message: str) -> Iterator[str]:
    for number, value in fields(data):
        nested = _NESTED[message].get(number)
        if isinstance(value, int):
            continue
        if nested == "entry":
            entry = dict(fields(value))
            if bytes(entry.get(_ENTRY_KEY, b"")) == b"location":
                yield bytes(entry.get(_ENTRY_VALUE, b"")).decode()
        elif nested:
            yield from _locations(value, nested)


def fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield (number, content) of a message's whole numbers and length-delimited fields.

    Raises IndexError or ValueError when the data is no protobuf message.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            number, at = _varint(data, at)
            yield tag >> 3, number
        elif kind == _BYTES:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("a field ends behind the end of the file")
            yield tag >> 3, data[at : at + size]
            at += size
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind} is unknown")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
