"""A graph in parts: each is loaded for its turn and let go again, so one at a time is in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgediffusion.engine import REPEATABLE, Arithmetic, Backend
from edgediffusion.manifest import GraphSpec

Arrays = dict[str, NDArray[np.generic]]


class PartsBackend:
    """Runs the parts of a graph one after the other.

    spec : the whole graph, with parts.
    open_part : loads a part. It is called anew for every run, so it should load from a cache.
    """

    arithmetic: Arithmetic

    def __init__(self, spec: GraphSpec, open_part: Callable[[GraphSpec], Backend]) -> None:
        self._spec = spec
        self._parts = part_graphs(spec)
        self._open = open_part
        with closing(open_part(self._parts[0])) as first:  # what does not load is said now
            self.arithmetic = first.arithmetic
            repeatable = getattr(first, "build", REPEATABLE) == REPEATABLE
        self.build = REPEATABLE if repeatable else None  # parts are opened anew for every run

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Compute all outputs; what no later part needs is dropped on the way."""
        values: Arrays = dict(inputs)
        results = {tensor.name for tensor in self._spec.outputs}
        for index, part in enumerate(self._parts):
            given = {tensor.name: values[tensor.name] for tensor in part.inputs}
            with closing(self._open(part)) as backend:
                outputs = backend.run(given)
            values |= zip((tensor.name for tensor in part.outputs), outputs, strict=True)
            wanted = results.union(t.name for p in self._parts[index + 1 :] for t in p.inputs)
            values = {name: value for name, value in values.items() if name in wanted}
        return [values[tensor.name] for tensor in self._spec.outputs]

    def rest(self) -> None:
        """Nothing is held between two runs."""

    def close(self) -> None:
        """Nothing is held between two runs."""


def part_graphs(spec: GraphSpec) -> tuple[GraphSpec, ...]:
    """Describe each part of a graph as a graph of its own, without golden vectors."""
    return tuple(
        msgspec.structs.replace(
            spec,
            file=part.file,
            inputs=part.inputs,
            outputs=part.outputs,
            golden=(),
            parts=(),
            plans=(),
            devices={},
            fp32=None,
            bf16={},
        )
        for part in spec.parts
    )
