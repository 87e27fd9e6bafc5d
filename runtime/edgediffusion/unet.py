"""The UNet's graphs of one kind as one function, whichever batches the bundle has."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediffusion.engine import Engine
from edgediffusion.image import require_finite

Float = NDArray[np.float32]
Rows = Mapping[str, NDArray[np.generic]]
Outputs = dict[str, NDArray[Any]]


class Unet:
    """Predict for one image and any number of rows of text.

    engines : graphs of one kind by their batch. Rows for which there is no graph of that many go
        through the one of batch 1, one after the other.

    ``spent_ms`` counts the milliseconds inside the engines so far.
    """

    def __init__(self, engines: Mapping[int, Engine]) -> None:
        self._engines = engines
        self.spent_ms = 0.0

    def __call__(self, image: Float, timestep: float, **rows: NDArray[np.generic]) -> Outputs:
        """Return the graph's outputs, one row for each row of the inputs.

        image : float32 of shape (channels, h, w), the same for all rows.
        rows : the graph's other inputs by name; the first axis is that of the rows.

        Raises NumericalError when the prediction holds NaN or infinity.
        """
        (count,) = {len(each) for each in rows.values()}
        batch = count if count in self._engines else 1
        parts = []
        for at in range(0, count, batch):
            part = {name: each[at : at + batch] for name, each in rows.items()}
            parts.append(self._run(batch, image, timestep, part))
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run(self, batch: int, image: Float, timestep: float, rows: Rows) -> Outputs:
        engine = self._engines[batch]
        given = {"sample": image, "timestep": np.full(1, timestep, np.float32), **rows}
        inputs: Outputs = {t.name: np.empty(t.shape, t.dtype) for t in engine.spec.inputs}
        for name, array in inputs.items():
            array[...] = given[name]
        start = time.perf_counter_ns()
        outputs: Outputs = engine(**inputs)
        self.spent_ms += (time.perf_counter_ns() - start) / 1e6
        require_finite(outputs["out_sample"], "unet", f"at timestep {timestep:g}")
        return outputs
