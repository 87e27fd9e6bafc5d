"""One tiny checkpoint and one bundle of it, exported once and shared."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgediffusion_export.exporter import export_checkpoint
from edgediffusion_export.options import ExportOptions
from tests.checkpoints import write_tiny_checkpoint

DATE = "1700000000"

# The networks are so small that handing work to another thread takes longer than doing it, much
# longer on a busy machine.
torch.set_num_threads(1)


def export_tiny(checkpoint: Path, output: Path, **options: Any) -> Path:
    """Export with a fixed date."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", DATE)
        return export_checkpoint(
            ExportOptions(checkpoint=str(checkpoint), output=output, **options)
        )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny float32 checkpoint with a tiny VAE. Nobody may change it: copy it first."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_vae=True)


@pytest.fixture
def broken(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to break."""
    return Path(shutil.copytree(checkpoint, tmp_path / "broken"))


@pytest.fixture(scope="session")
def tiny_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 bundle of the tiny checkpoint. Nobody may change it."""
    return export_tiny(checkpoint, tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def exporting() -> Callable[..., Path]:
    """Export with a fixed date: ``exporting(checkpoint, output, **options)``."""
    return export_tiny


@pytest.fixture(scope="session")
def parts_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint for small machines: UNet in parts, decoder tiles, two sizes."""
    return export_tiny(
        checkpoint,
        tmp_path_factory.mktemp("parts") / "tiny",
        sizes=((64, 64), (128, 64)),
        split=3,
        decoder_tiles=((32, 32),),
    )
