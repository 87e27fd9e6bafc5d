"""What tests of the exporter share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.bundles import export_tiny

# The networks are so small that handing work to another thread takes longer than doing it, much
# longer on a busy machine.
torch.set_num_threads(1)


@pytest.fixture
def broken(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to break."""
    return Path(shutil.copytree(checkpoint, tmp_path / "broken"))


@pytest.fixture
def exporting() -> Callable[..., Path]:
    """Export with a fixed date: ``exporting(checkpoint, output, **options)``."""
    return export_tiny
