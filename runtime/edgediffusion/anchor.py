"""A fixed piece of work, measured in every round: what a machine does now, to divide by.

Absolute times of two runs on shared machines mean nothing; their ratios to an anchor of the same
identity do.
"""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from edgediffusion.timing import time_call

PRODUCTS: Final = 5  # of which a sample is the median
THREAD_VARIABLES: Final = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


@dataclass
class Anchor:
    """Products of two square float32 matrices by NumPy's BLAS, with its default threads."""

    size: int = 1024
    identity: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        self.factors = rng.standard_normal((2, self.size, self.size), dtype=np.float32)
        self.product = np.empty((self.size, self.size), np.float32)
        self.identity = {
            "name": "sgemm",
            "size": self.size,
            "numpy": np.__version__,
            "blas": blas(),
            "threads": threads(),
        }
        self.sample()  # the first product starts the threads

    def sample(self) -> float:
        """Milliseconds of one product."""
        return statistics.median(time_call(self._multiply) for _ in range(PRODUCTS))

    def _multiply(self) -> None:
        np.matmul(self.factors[0], self.factors[1], out=self.product)


def blas() -> str:
    """The name and version of the library that NumPy multiplies with."""
    config: Any = np.show_config(mode="dicts")
    found = config.get("Build Dependencies", {}).get("blas", {})
    return f"{found.get('name', 'unknown')} {found.get('version', '')}".strip()


def threads() -> int:
    """How many threads the library takes: what a variable says, else one for each core."""
    for name in THREAD_VARIABLES:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return os.cpu_count() or 1
