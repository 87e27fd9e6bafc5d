"""Golden files: recorded arrays with the script, the versions and the date that made them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file


def write_golden(
    file: Path,
    tensors: Mapping[str, np.ndarray[Any, Any]],
    script: str,
    packages: Iterable[str],
    **facts: str,
) -> None:
    """Write a golden file; its metadata is its birth certificate, ``facts`` among it.

    script : the name of the script beside this file.
    packages : those whose versions count.
    """
    certificate = {
        "script": f"tests/golden/{script}",
        **{name.replace("-", "_"): version(name) for name in packages},
        "date": datetime.now(UTC).date().isoformat(),
        **facts,
    }
    save_file(dict(tensors), file, metadata=certificate)
    print(f"{file}: {len(tensors)} arrays, {file.stat().st_size} bytes")
