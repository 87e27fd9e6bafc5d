"""Prompts to the states that condition the UNet, through the text encoder's static graphs.

A bundle has up to two graphs of the text encoder. ``plain`` takes token ids and gives the last
layer's states. ``prompt`` also takes vectors that are no tokens' (textual inversion), and gives the
states of every layer (clip skip). It is loaded only when a request needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgediffusion.bundle import Bundle
from edgediffusion.conditioning import (
    Chunk,
    Prompt,
    PromptOptions,
    apply_weights,
    empty_chunk,
    read_prompt,
)
from edgediffusion.engine import Engine
from edgediffusion.errors import RequestError
from edgediffusion.manifest import PLAIN, PROMPT, TEXT_ENCODERS, GraphSpec
from edgediffusion.timing import Stopwatch
from edgediffusion.tokenizer import Tokenizer

Float = NDArray[np.float32]
OpenVariant = Callable[[str, Stopwatch | None], Engine]


@dataclass(frozen=True)
class States:
    """What a text encoder makes of one prompt, or several of them together.

    hidden : float32 (1, tokens, width), all chunks one after the other.
    pooled : float32 (1, width), of the first chunk, without weights.
    """

    hidden: Float
    pooled: Float


class TextEncoder:
    """A text encoder of a bundle, and its tokenizer.

    engine : opens, or returns, the text encoder's graph of a variant.
    component : its name.
    """

    def __init__(self, bundle: Bundle, engine: OpenVariant, component: str) -> None:
        self._bundle = bundle
        self._engine = engine
        self._component = component

    def read(self, text: str, options: PromptOptions) -> Prompt:
        """Tokenize a prompt; raises RequestError."""
        index = TEXT_ENCODERS.index(self._component)
        own = tuple(embedding.of(index) for embedding in options.embeddings)
        return read_prompt(text, self._tokenizer, replace(options, embeddings=own))

    def load(self, prompt: Prompt, chunks: int, clip_skip: int, watch: Stopwatch) -> None:
        """Load the graphs that ``encode`` will use of the same arguments."""
        for variant in self.variants(prompt, chunks, clip_skip):
            self._engine(variant, watch)

    def encode(self, prompt: Prompt, chunks: int = 1, clip_skip: int = 0) -> States:
        """Return the states of a prompt, padded with empty chunks to ``chunks`` of them.

        clip_skip : how many of the last layers to leave out. The final norm is applied to what
            the layer before them gives.
        """
        padded = self._padded(prompt, chunks)
        states = [self._encode(chunk, clip_skip) for chunk in padded]
        weighted = [
            apply_weights(each.hidden, chunk.weights)
            for each, chunk in zip(states, padded, strict=True)
        ]
        return States(np.concatenate(weighted, axis=1), states[0].pooled)

    def variants(self, prompt: Prompt, chunks: int = 1, clip_skip: int = 0) -> set[str]:
        """Return the graphs that ``encode`` will use of the same arguments."""
        return {_variant(chunk, clip_skip) for chunk in self._padded(prompt, chunks)}

    def _padded(self, prompt: Prompt, chunks: int) -> list[Chunk]:
        missing = chunks - len(prompt.chunks)
        return [*prompt.chunks, *[empty_chunk(self._tokenizer)] * missing]

    def _encode(self, chunk: Chunk, clip_skip: int) -> States:
        engine = self._engine(_variant(chunk, clip_skip), None)
        if engine.spec.variant == PLAIN:
            outputs = engine(input_ids=chunk.ids)
            hidden = outputs[self._bundle.manifest.conditioning.hidden_state]
        else:
            slots = next(t for t in engine.spec.inputs if t.name == "extra_embeddings")
            extra = np.zeros(slots.shape, slots.dtype)
            extra[: len(chunk.vectors), : chunk.vectors.shape[1]] = chunk.vectors
            outputs = engine(input_ids=chunk.ids, extra_embeddings=extra)
            hidden = outputs["skip_states"][:, clip_skip]
        return States(hidden.astype(np.float32), outputs["pooler_output"].astype(np.float32))

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        spec = self._bundle.manifest.tokenizers[self._component]
        return Tokenizer(spec, self._bundle.file(spec.file))


def require_prompt_graphs(bundle: Bundle, wanted: str) -> list[GraphSpec]:
    """Return the graph that ``wanted`` needs of each text encoder.

    Raises RequestError for bundles made without it.
    """
    if PROMPT not in bundle.variants("text_encoder"):
        raise RequestError(
            f"bundle {bundle.manifest.name} cannot do {wanted}: it was made before its text "
            "encoder had a graph for that. Make it again with: edgediffusion export CHECKPOINT "
            "-o BUNDLE"
        )
    return [bundle.graph(name, variant=PROMPT) for name in bundle.manifest.tokenizers]


def check_clip_skip(name: str, value: object, bundle: Bundle) -> int:
    """Return the number of layers to leave out, 0 for None; raises RequestError."""
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise RequestError(f"{name} must be a whole number of at least 0, got {value!r}")
    if value == 0:
        return 0
    states = [
        next(tensor for tensor in graph.outputs if tensor.name == "skip_states")
        for graph in require_prompt_graphs(bundle, name)
    ]
    layers = min(tensor.shape[1] for tensor in states) - 1
    if value > layers:
        raise RequestError(
            f"{name} must be at most {layers}, no more of the text encoder's layers can be left "
            f"out; got {value}"
        )
    return value


def _variant(chunk: Chunk, clip_skip: int) -> str:
    return PROMPT if clip_skip or len(chunk.vectors) else PLAIN
