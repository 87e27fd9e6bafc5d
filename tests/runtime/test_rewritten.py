"""Which file of a graph runs: the one rewritten for float32, or the plain one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

import edgediffusion as ed
from edgediffusion import engine_ort
from edgediffusion.auto import Chooser
from edgediffusion.engine import EngineOptions


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that the device ``cpu`` opens."""
    names: list[str] = []
    original = engine_ort.open_with

    def noting(compiler: Any, device: str, spec: Any, path: Path, *rest: Any) -> Any:
        names.append(path.name)
        return original(compiler, device, spec, path, *rest)

    monkeypatch.setattr(engine_ort, "open_with", noting)
    return names


@pytest.mark.parametrize(
    ("limited", "options", "file"),
    [
        (False, {}, "128x128.b1.fp32.onnx"),
        (True, {}, "128x128.b1.onnx"),
        (False, {"lean": True}, "128x128.b1.onnx"),
    ],
)
def test_where_memory_is_short_the_plain_file_runs(
    rewritten: ed.Bundle,
    opened: list[str],
    limited: bool,
    options: Mapping[str, Any],
    file: str,
) -> None:
    chooser = Chooser(rewritten, "cpu", EngineOptions(**options), limited)
    chooser.open(rewritten.graph("unet", batch=1, size=(128, 128))).close()
    assert opened == [file]


def test_the_two_files_are_two_engines_in_the_cache(rewritten: ed.Bundle) -> None:
    spec = rewritten.graph("unet", batch=1, size=(128, 128))
    plain = msgspec.structs.replace(spec, fp32=None)
    assert rewritten.content(spec) != rewritten.content(plain)
