from __future__ import annotations

import pytest

from edgediffusion.byte_sizes import parse_bytes, say_bytes
from edgediffusion.errors import RequestError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("123", 123),
        ("500MB", 500_000_000),
        ("1.5 GiB", 3 << 29),
        ("20g", 20_000_000_000),
        ("2 TiB", 2 << 40),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text, "LIMIT") == size


@pytest.mark.parametrize("text", ["many", "-1", "1e9", "5 XB", "1.5.2", ""])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match=f"LIMIT '{text}' is not a size such as 500MB, 20GiB"):
        parse_bytes(text, "LIMIT")


def test_sizes_are_written() -> None:
    assert say_bytes(20 << 30) == "20.0 GiB"
    assert say_bytes(3 << 19) == "1.5 MiB"
