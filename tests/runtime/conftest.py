"""An fp16 bundle, which devices on GPUs take, and a cache of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgediffusion import auto
from edgediffusion.engine import Engine


@pytest.fixture(scope="session")
def half_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp16 bundle of a tiny checkpoint. Nobody may change it."""
    from edgediffusion_export.exporter import export_checkpoint
    from edgediffusion_export.options import ExportOptions
    from tests.checkpoints import write_tiny_checkpoint

    folder = tmp_path_factory.mktemp("half")
    checkpoint = write_tiny_checkpoint(folder / "checkpoint")
    options = ExportOptions(
        checkpoint=str(checkpoint), output=folder / "tiny", precision="fp16", guidance=3.0
    )
    return export_checkpoint(options)


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The graphs that were proven, in order."""
    proven: list[str] = []
    check = auto.check_graph

    def counting(engine: Engine, *rest: Any, **more: Any) -> float:
        proven.append(engine.spec.file)
        return check(engine, *rest, **more)

    monkeypatch.setattr(auto, "check_graph", counting)
    return proven


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache for each test, below ``tmp_path / "cache"``."""
    monkeypatch.setenv("EDGEDIFFUSION_CACHE", str(tmp_path / "cache"))
