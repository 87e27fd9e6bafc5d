"""How much memory a request takes under each residency, and the one that fits a limit.

The estimate is for the CPU provider of ONNX Runtime and for a first start, when graphs are still
being prepared. docs/memory.md compares it with what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby
from pathlib import Path
from typing import Final

from edgediffusion.bundle import Bundle, say_size
from edgediffusion.byte_sizes import parse_bytes, say_bytes
from edgediffusion.calls import EVERYWHERE
from edgediffusion.engine_parts import part_graphs
from edgediffusion.errors import RequestError
from edgediffusion.graph_bytes import GraphBytes, read_graph_bytes
from edgediffusion.manifest import DEEP, PLAIN, SHALLOW, GraphSpec, variant_name
from edgediffusion.request import Plan, decoder_tiles
from edgediffusion.residency import Residency, component_name, has_parts

Size = tuple[int, int]

LIBRARIES: Final = 120 << 20
"""Python, NumPy, ONNX Runtime and the tokenizer, without any graph."""
HELD: Final = 1.2
"""What a graph that stays holds, over its weights. Stable Diffusion 1.5 came to 1.0: its weights
are mapped as its kernels want them. The rest is for CPUs whose kernels keep a second layout."""
WORKING: Final = 1.2
"""The pool that a graph has for its values until its component's turn is over, over those that live
at one time. Stable Diffusion 1.5 came to 1.0."""
PART_HELD: Final = 1.6
"""What a part holds, over its weights: some kernels keep a second layout of theirs. Of the eight
parts of Stable Diffusion 1.5's UNet, the one with the most of these came to 1.58."""
PART_WORKING: Final = 2.5
"""What running without a pool takes, over the values that live at one time: kernels need room of
their own, and the allocator keeps some of what was given back. Chosen to hold for all that was
measured."""
LOADING: Final = 2.0
"""What a graph holds at most while it is prepared, over its weights: the old layout and the new."""


@dataclass(frozen=True)
class MemoryLimit:
    """The most bytes that the process shall take; residency is None where it may be chosen."""

    size: int
    residency: str | None = None

    @classmethod
    def of(cls, limit: str | int, residency: str | None = None) -> MemoryLimit:
        """Read a limit like ``2GB`` or a number of bytes; raises RequestError."""
        return cls(parse_bytes(str(limit), "max_memory"), residency)


@dataclass(frozen=True)
class MemoryPlan:
    """How a request is run to stay within a limit.

    tile : (height, width) of the decoder's graph.
    estimate : bytes that the process takes at most.
    """

    residency: Residency
    tile: Size
    estimate: int


def plan_memory(bundle: Bundle, plan: Plan, limit: MemoryLimit, tiled: bool = False) -> MemoryPlan:
    """Return the least drastic way to run a request within a limit.

    tiled : whether the plan's decoder tile was asked for, and is the only one to consider.

    Raises RequestError with the figure of what needs least, where nothing fits.
    """
    plans = [
        each for each in _plans(bundle, plan, tiled) if limit.residency in (None, each.residency)
    ]
    fitting = (each for each in plans if each.estimate <= limit.size)
    if (chosen := next(fitting, None)) is not None:
        return chosen
    least = min(plans, key=lambda each: each.estimate)
    raise RequestError(
        f"bundle {bundle.manifest.name} at {say_size(plan.size)} takes at least "
        f"{say_bytes(least.estimate)} (residency {least.residency!r}, decoder tiles of "
        f"{say_size(least.tile)}), more than max_memory {say_bytes(limit.size)}: "
        f"{_fix(bundle, plan)}"
    )


def _plans(bundle: Bundle, plan: Plan, tiled: bool) -> Iterator[MemoryPlan]:
    """All ways to run a request: exact ones first, and of these the fast ones first."""
    tiles = [plan.decoder_tile] if tiled else decoder_tiles(plan.decoder, plan.size, bundle)[::-1]
    ways: tuple[Residency, ...] = ("all", "one", "stream") if has_parts(bundle) else ("all", "one")
    for tile in tiles:
        graphs = request_graphs(bundle, plan, tile)
        for way in ways:
            yield MemoryPlan(way, tile, estimate(bundle, graphs, way))


def estimate(bundle: Bundle, graphs: Sequence[GraphSpec], residency: Residency) -> int:
    """Return the bytes that a process takes at most to run these graphs in turn."""
    together = [list(group) for _, group in groupby(graphs, component_name)]
    if residency == "stream":
        needs = [[_pieces(bundle, graph) for graph in group] for group in together]
        return LIBRARIES + max(map(_in_parts, needs))
    turns = [[_bytes(bundle, graph) for graph in group] for group in together]
    return LIBRARIES + (_staying(turns) if residency == "all" else max(map(_turn, turns)))


def request_graphs(bundle: Bundle, plan: Plan, tile: Size) -> list[GraphSpec]:
    """Return the graphs that a request may run, in order."""
    components = bundle.manifest.components
    texts = [graph for name in bundle.manifest.tokenizers for graph in components[name].graphs]
    options = plan.prompt_options
    both = options.embeddings or plan.clip_skip or plan.negative_clip_skip
    found = [graph for graph in texts if both or graph.variant == PLAIN]
    for kind in (DEEP, SHALLOW) if plan.savings.deepcache_interval > 1 else (PLAIN,):
        variant = variant_name(kind, _chunks(bundle, plan))
        batches = bundle.batches("unet", plan.size, variant)
        for batch in sorted({rows if rows in batches else 1 for rows in _rows(plan)}):
            found.append(bundle.graph("unet", batch=batch, size=plan.size, variant=variant))
    return [*found, bundle.graph(plan.decoder, size=tile)]


def _rows(plan: Plan) -> set[int]:
    """How many rows the UNet's calls have: two with guidance, one without."""
    if not plan.guided:
        return {1}
    savings = plan.savings
    always = savings.guidance_interval == EVERYWHERE and savings.guidance_every == 1
    return {2} if always else {1, 2}


def _staying(turns: Sequence[Sequence[GraphBytes]]) -> int:
    """The most bytes that components take whose graphs stay once they were loaded."""
    before = accumulate((_held(turn) for turn in turns), initial=0)
    first = max(held + _turn(turn) for held, turn in zip(before, turns, strict=False))
    return max(first, sum(map(_held, turns)) + max(map(_pools, turns)))


def _turn(graphs: Sequence[GraphBytes]) -> int:
    """The most bytes that a component takes in its turn: loading graphs, then running them.

    Graphs are all loaded before the first of them runs.
    """
    loading = max(_held(graphs[:n]) + round(LOADING * g.weights) for n, g in enumerate(graphs))
    return max(loading, _held(graphs) + _pools(graphs))


def _held(graphs: Sequence[GraphBytes]) -> int:
    return sum(round(HELD * graph.weights) for graph in graphs)


def _pools(graphs: Sequence[GraphBytes]) -> int:
    return sum(round(WORKING * graph.working) for graph in graphs)


def _in_parts(loaded: Sequence[Sequence[GraphBytes]]) -> int:
    """The most bytes that graphs take which run without a pool; each is of some pieces.

    Pieces come and go while their graph runs, so a graph of several holds nothing in between.
    """
    held = [round(PART_HELD * pieces[0].weights) if len(pieces) == 1 else 0 for pieces in loaded]
    most = 0
    for index, pieces in enumerate(loaded):
        loading = max(round(LOADING * piece.weights) for piece in pieces)
        running = max(
            round(PART_HELD * piece.weights) + round(PART_WORKING * piece.working)
            for piece in pieces
        )
        others = sum(held) - held[index]
        most = max(most, sum(held[:index]) + loading, others + running)
    return most


def _pieces(bundle: Bundle, graph: GraphSpec) -> list[GraphBytes]:
    """What is loaded of a graph at one time: each of its parts in turn, or all of it."""
    return [_bytes(bundle, piece) for piece in (part_graphs(graph) if graph.parts else [graph])]


def _bytes(bundle: Bundle, graph: GraphSpec) -> GraphBytes:
    return _known_bytes(bundle.file(graph.file), bundle.manifest.files[graph.file].sha256)


@lru_cache(maxsize=512)
def _known_bytes(path: Path, _sha256: str) -> GraphBytes:
    return read_graph_bytes(path)


def _chunks(bundle: Bundle, plan: Plan) -> int:
    """The most chunks that the request's prompts could have."""
    if plan.prompt_options.long_prompts == "truncate":
        return 1
    variants = bundle.variants("unet")
    return max(n for n in range(1, len(variants) + 1) if variant_name(chunks=n) in variants)


def _fix(bundle: Bundle, plan: Plan) -> str:
    if not has_parts(bundle):
        return "raise it, or export again with --split 8 and --decoder-tile 256x256"
    if plan.decoder_tile == decoder_tiles(plan.decoder, plan.size, bundle)[0]:
        return "raise it, or export again with --decoder-tile 256x256 and a larger --split"
    return "raise it, ask for a smaller size, or export again with a larger --split"
