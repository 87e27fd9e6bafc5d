"""Check plain decoded data against typed structures, and report every fault at once.

msgspec itself stops at the first fault. A person who repairs a manifest wants them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import inspect

_SCALARS: dict[type[inspect.Type], tuple[type, ...]] = {
    inspect.StrType: (str,),
    inspect.IntType: (int,),
    inspect.FloatType: (int, float),
    inspect.BoolType: (bool,),
    inspect.NoneType: (type(None),),
}


def faults_of(data: object, expected: type) -> Iterator[str]:
    """Yield ``"<JSON path>: <fault>"`` for every place where ``data`` does not fit ``expected``."""
    yield from _walk(data, inspect.type_info(expected), "$")


def _walk(data: Any, info: inspect.Type, at: str) -> Iterator[str]:
    match info:
        case inspect.AnyType():
            return
        case inspect.StructType():
            yield from _struct(data, info, at)
        case inspect.DictType():
            yield from _mapping(data, info, at)
        case inspect.VarTupleType() | inspect.ListType():
            yield from _sequence(data, info.item_type, None, at)
        case inspect.TupleType():
            yield from _sequence(data, info.item_types, len(info.item_types), at)
        case inspect.UnionType():
            yield from _union(data, info, at)
        case inspect.LiteralType():
            if data not in info.values:
                expected = " or ".join(map(repr, info.values))
                yield f"{at}: got {data!r:.60}, expected {expected}"
        case _:
            yield from _scalar(data, info, at)


def _scalar(data: Any, info: inspect.Type, at: str) -> Iterator[str]:
    accepted = _SCALARS[type(info)]
    is_bool_as_number = isinstance(data, bool) and bool not in accepted
    if not isinstance(data, accepted) or is_bool_as_number:
        yield f"{at}: got {_kind(data)}, expected {_name(info)}"


def _struct(data: Any, info: inspect.StructType, at: str) -> Iterator[str]:
    if not isinstance(data, dict):
        yield f"{at}: got {_kind(data)}, expected object"
        return
    for field in info.fields:
        if field.encode_name in data:
            yield from _walk(data[field.encode_name], field.type, f"{at}.{field.encode_name}")
        elif field.required:
            yield f"{at}.{field.encode_name}: is missing"


def _mapping(data: Any, info: inspect.DictType, at: str) -> Iterator[str]:
    if not isinstance(data, dict):
        yield f"{at}: got {_kind(data)}, expected object"
        return
    for key, value in data.items():
        yield from _walk(value, info.value_type, f"{at}.{key}")


def _sequence(
    data: Any, items: inspect.Type | tuple[inspect.Type, ...], length: int | None, at: str
) -> Iterator[str]:
    if not isinstance(data, list):
        yield f"{at}: got {_kind(data)}, expected array"
        return
    if length is not None and len(data) != length:
        yield f"{at}: got {len(data)} items, expected {length}"
        return
    for i, value in enumerate(data):
        yield from _walk(value, items[i] if isinstance(items, tuple) else items, f"{at}[{i}]")


def _union(data: Any, info: inspect.UnionType, at: str) -> Iterator[str]:
    """The first member that fits; else the faults of the member that the data means to be."""
    tagged = [t for t in info.types if isinstance(t, inspect.StructType) and t.tag is not None]
    if tagged and isinstance(data, dict):
        chosen = [t for t in tagged if data.get(t.tag_field) == t.tag]
        if chosen:
            yield from _walk(data, chosen[0], at)
        else:
            expected = " or ".join(repr(t.tag) for t in tagged)
            yield f"{at}.type: got {data.get('type')!r:.60}, expected {expected}"
        return
    attempts = [list(_walk(data, member, at)) for member in info.types]
    if all(attempts):
        yield max(attempts, key=lambda faults: len(faults[0].split(":")[0]))[0]


def _kind(data: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(data), f"number {data!r}")


def _name(info: inspect.Type) -> str:
    return type(info).__name__.removesuffix("Type").lower()
