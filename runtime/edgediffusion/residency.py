"""Which graphs of a pipeline stay in memory, and which make room for the next one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, Literal, get_args

from edgediffusion.bundle import Bundle
from edgediffusion.engine import Engine
from edgediffusion.errors import RequestError, choices
from edgediffusion.manifest import GraphSpec
from edgediffusion.timing import Stopwatch

Residency = Literal["all", "one", "stream"]
"""``all`` graphs stay once they are loaded; of ``one`` component at a time; ``stream`` also loads
the UNet part by part, at every step anew. What graphs work in is only that of one component."""

RESIDENCIES: Final[tuple[Residency, ...]] = get_args(Residency)


class Residents:
    """The loaded graphs of a pipeline.

    open_graph : loads a graph, lean or not.
    residency : may be changed between two runs.
    """

    def __init__(
        self, open_graph: Callable[[GraphSpec, bool], Engine], residency: Residency = "all"
    ) -> None:
        self._open = open_graph
        self._engines: dict[str, Engine] = {}
        self._turn: str | None = None
        self.residency = residency

    def get(self, spec: GraphSpec, watch: Stopwatch | None = None) -> Engine:
        """Return a graph's engine; loading it takes the place of others as residency demands."""
        lean = self.residency == "stream"
        name = _name(spec, lean)
        if component_name(spec) != self._turn:
            self.rest()
            self._turn = component_name(spec)
        if name not in self._engines:
            if self.residency != "all":
                self._close(lambda other: component_name(other) != self._turn)
            with (watch or Stopwatch())("load"):
                self._engines[name] = self._open(spec, lean)
        return self._engines[name]

    def begin(self, residency: Residency, sizes: Collection[tuple[int, int]]) -> None:
        """Prepare for a run: let go of graphs that were loaded for other sizes or otherwise."""
        if (residency == "stream") != (self.residency == "stream"):
            self.close()
        self.residency = residency
        self._close(lambda spec: spec.size is not None and spec.size not in sizes)

    def rest(self) -> None:
        """Give back what graphs had to work in; those that are loaded stay so."""
        for engine in self._engines.values():
            engine.rest()

    def close(self) -> None:
        """Let go of all graphs."""
        self._close(lambda _: True)

    def _close(self, leaves: Callable[[GraphSpec], bool]) -> None:
        for name, engine in list(self._engines.items()):
            if leaves(engine.spec):
                engine.close()
                del self._engines[name]


def check_residency(residency: str, bundle: Bundle) -> Residency:
    """Return a residency that exists and that the bundle can have; raises RequestError."""
    if residency not in RESIDENCIES:
        raise RequestError(f"unknown residency {residency!r}: {choices(residency, RESIDENCIES)}")
    if residency == "stream" and not has_parts(bundle):
        raise RequestError(
            f"bundle {bundle.manifest.name} has no graphs in parts for residency 'stream': export "
            "again with --split 8, or use 'one'"
        )
    return residency


def has_parts(bundle: Bundle) -> bool:
    """Whether the UNet of a bundle can be loaded part by part."""
    return all(graph.parts for graph in bundle.manifest.components["unet"].graphs)


def component_name(spec: GraphSpec) -> str:
    """The component that a graph belongs to: its folder is named after it."""
    return spec.file.partition("/")[0]


def _name(spec: GraphSpec, lean: bool) -> str:
    return f"{spec.file} in parts" if lean and spec.parts else spec.file
