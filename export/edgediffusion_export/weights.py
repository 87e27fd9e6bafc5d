"""Every distinct tensor of a component once, in one safetensors file that its graphs share.

A graph refers to its tensors as ONNX external data (location, offset, length) inside that file.
Each stored tensor is traced to the source parameter by its bytes: as it is, reshaped, or
transposed, as constant folding leaves them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgediffusion.manifest import Precision, StoredTensor

Array = NDArray[np.generic]

PAGE: Final = 4096
"""The header is padded to whole pages, so that the tensors start on one."""

INLINE_BYTES: Final = 1024
"""Constants that are no parameters stay inside the graph below this size."""

_SAFETENSORS: Final = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_FLOATS: Final[Mapping[Precision, np.dtype[np.generic]]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
}


def is_matrix(shape: Iterable[int]) -> bool:
    """Whether a tensor has more than one side; norms and biases do not, and are never rounded."""
    return sum(side > 1 for side in shape) > 1


@dataclass(frozen=True)
class Entry:
    """One tensor: as the graphs compute with it, and the dtype that the file keeps it in."""

    array: Array
    dtype: np.dtype[np.generic]
    origin: StoredTensor

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.dtype.itemsize * self.array.size

    def stored(self) -> Array:
        """The array as the file holds it."""
        return np.ascontiguousarray(self.array.astype(self.dtype, copy=False))


class WeightStore:
    """Collects the tensors of a component's graphs, then writes them and links the graphs.

    parameters : the source's parameters by name, as the graphs compute with them.
    source : the precision that the checkpoint keeps them in; store : the one to store them in.
    """

    def __init__(
        self, parameters: Mapping[str, Array], *, source: Precision, store: Precision
    ) -> None:
        self._parameters = parameters
        self._source = source
        self._store = store
        self._names: dict[bytes, list[str]] = {}
        for name, array in parameters.items():
            self._names.setdefault(_digest(array), []).append(name)
        self._derived: dict[bytes, tuple[list[str], tuple[str, ...]]] = {}
        self._by_content: dict[bytes, str] = {}
        self.entries: dict[str, Entry] = {}

    def adopt(self, model: ir.Model, names: Mapping[str, str]) -> dict[str, str]:
        """Take the tensors out of a graph and give its initializers their parameters' names.

        ``names`` says which parameter the tracer means by a name. Returns which stored tensor
        each initializer is; constants that stay inside the graph are left out.
        """
        links: dict[str, str] = {}
        values = {names.get(v.name, v.name): v for v in model.graph.initializers.values()}
        for name in sorted(values, key=lambda name: name not in self._parameters):
            value = values[name]
            array = self._narrowed(value.const_value.numpy())
            found = self.trace(array)
            if found is None and array.nbytes < INLINE_BYTES:
                continue
            stored = self._keep(array, found)
            given = _first_free([name, *(found[0] if found else ())], links)
            _rename(model.graph, value, given)
            links[given] = stored
        return links

    def tensors(self) -> dict[str, StoredTensor]:
        """Where every stored tensor came from."""
        return {name: entry.origin for name, entry in sorted(self.entries.items())}

    def layout(self) -> tuple[bytes, dict[str, int]]:
        """The file's header and the offset of each tensor from the start of the file.

        The format allows no holes, so the widest numbers come first: each is then aligned.
        """
        order = sorted(self.entries, key=lambda name: (-self.entries[name].dtype.itemsize, name))
        table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at, starts = 0, {}
        for name in order:
            entry = self.entries[name]
            table[name] = {
                "dtype": _SAFETENSORS[entry.dtype.name],
                "shape": list(entry.array.shape),
                "data_offsets": [at, at + entry.nbytes],
            }
            starts[name] = at
            at += entry.nbytes
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % PAGE)
        header = len(text).to_bytes(8, "little") + text
        return header, {name: len(header) + start for name, start in starts.items()}

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes of the safetensors file, tensor by tensor."""
        header, offsets = self.layout()
        yield header
        for name in offsets:
            yield self.entries[name].stored().reshape(-1).view(np.uint8).data

    def link(self, model: ir.Model, links: Mapping[str, str], location: str) -> None:
        """Point a graph's initializers into the file; what it keeps in float16 and the graph takes
        in float32 gets a Cast.
        """
        _, offsets = self.layout()
        for initializer, name in sorted(links.items()):
            value, entry = model.graph.initializers[initializer], self.entries[name]
            taken, kept = value.const_value.dtype, ir.DataType.from_numpy(entry.dtype)
            value.const_value = ir.ExternalTensor(
                location,
                offsets[name],
                entry.nbytes,
                kept,
                shape=value.shape,
                name=initializer,
            )
            if taken != kept:
                _cast_to_float32(model.graph, value)

    def derive(self, array: Array, names: list[str], transforms: tuple[str, ...]) -> None:
        """Say that ``array``, which equals no parameter, was made of the first of ``names``."""
        self._derived[_digest(array)] = (names, transforms)

    def trace(self, array: Array) -> tuple[list[str], tuple[str, ...]] | None:
        """The parameters that have these bytes, or became them, and what was done to them."""
        if found := self._derived.get(_digest(array)):
            return found
        if names := self._names.get(_digest(array)):
            shapes = {self._parameters[name].shape for name in names}
            reshaped = () if array.shape in shapes else (f"reshape:{_say(array.shape)}",)
            return names, reshaped
        if array.ndim == 2 and (names := self._names.get(_digest(array.T))):
            return names, ("transpose",)
        return None

    def _narrowed(self, array: Array) -> Array:
        """The float16 parameter that a layer in float32 takes as float32; else what came in."""
        if array.dtype != np.float32 or self.trace(array):
            return array
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        return half if self.trace(half) and np.array_equal(half, array) else array

    def _keep(self, array: Array, found: tuple[list[str], tuple[str, ...]] | None) -> str:
        """Store the content unless it is there already, and return its name in the file."""
        digest = _digest(array)
        if digest in self._by_content:
            return self._by_content[digest]
        names, transforms = found or ([], ())
        dtype = self._dtype(array, names)
        if names and dtype.kind == "f" and dtype != _FLOATS[self._source]:
            transforms = (*transforms, f"cast:{dtype.name}")
        name = names[0] if names else f"constant.{len(self.entries)}"
        while name in self.entries:
            name += f".{transforms[0].partition(':')[0]}" if transforms else ".copy"
        origin = StoredTensor(names[0] if names else None, transforms)
        self.entries[name] = Entry(array, dtype, origin)
        self._by_content[digest] = name
        return name

    def _dtype(self, array: Array, names: list[str]) -> np.dtype[np.generic]:
        """The dtype to store a tensor in: only matrices of the source are ever halved."""
        halve = names and array.dtype == np.float32 and is_matrix(array.shape)
        return np.dtype(np.float16) if halve and self._store == "fp16" else array.dtype


def _digest(array: Array) -> bytes:
    data = np.ascontiguousarray(array)
    digest = blake2b(data.reshape(-1).view(np.uint8).data, digest_size=20)
    return digest.digest() + data.dtype.str.encode()


def _say(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _first_free(names: list[str], taken: Mapping[str, str]) -> str:
    """The initializer's own name if it is a parameter's, else that of a parameter it equals.

    The exporter numbers folded constants (``val_12``); the first name is such a number unless
    it is among the rest.
    """
    own, *rest = names
    wanted = [own, *rest] if own in rest or not rest else [*rest, own]
    return next(name for name in wanted if name not in taken)


def _rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    del graph.initializers[value.name]
    value.name = name
    graph.initializers[name] = value


def _cast_to_float32(graph: ir.Graph, value: ir.Value) -> None:
    """Make ``value`` a float16 initializer and give its users the Cast of it."""
    users = tuple(value.uses())
    value.type = ir.TensorType(ir.DataType.FLOAT16)
    cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT}, name=f"{value.name}.cast")
    cast.outputs[0].name = f"{value.name}.float32"
    cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    cast.outputs[0].shape = value.shape
    for node, index in users:
        node.replace_input_with(index, cast.outputs[0])
    graph.insert_before(graph[0], cast)
