"""An fp16 bundle, which devices on GPUs take, and a cache of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest


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
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache for each test, below ``tmp_path / "cache"``."""
    monkeypatch.setenv("EDGEDIFFUSION_CACHE", str(tmp_path / "cache"))
