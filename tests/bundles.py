"""Bundles of the tiny checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

DATE = "1700000000"


def export_tiny(checkpoint: Path, output: Path, **options: Any) -> Path:
    """Export with a fixed date, and PyTorch on one thread.

    The networks are so small that handing work to another thread takes longer than doing it, much
    longer on a busy machine.
    """
    import torch

    from edgediffusion_export.exporter import export_checkpoint
    from edgediffusion_export.options import ExportOptions

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", DATE)
        return export_checkpoint(
            ExportOptions(checkpoint=str(checkpoint), output=output, **options)
        )
