"""What the UNet hears besides the picture: texts, and for SDXL the size that the picture has.

SDXL (Podell et al. 2023, arXiv:2307.01952) reads a prompt with two text encoders. Their states
stand side by side; the second one's pooled vector, and six numbers about the size, go to every
block together with the timestep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgediffusion.bundle import Bundle
from edgediffusion.conditioning import Prompt, PromptOptions
from edgediffusion.engine import Engine
from edgediffusion.manifest import Recipe
from edgediffusion.text_encoder import States, TextEncoder
from edgediffusion.timing import Stopwatch

Float = NDArray[np.float32]
OpenGraph = Callable[[str, str, Stopwatch | None], Engine]


@dataclass(frozen=True)
class Reading:
    """A text as each of the text encoders takes it."""

    prompts: tuple[Prompt, ...]

    @property
    def chunks(self) -> int:
        """Chunks of the text encoder that takes most of them."""
        return max(len(prompt.chunks) for prompt in self.prompts)

    @property
    def dropped(self) -> str:
        """The end of the text that did not fit."""
        return max((prompt.dropped for prompt in self.prompts), key=len)


class TextEncoders:
    """All text encoders of a bundle, which has one or two.

    open_graph : opens, or returns, a component's graph of a variant.
    """

    def __init__(self, bundle: Bundle, open_graph: OpenGraph) -> None:
        self._encoders = [
            TextEncoder(bundle, _graphs_of(component, open_graph), component)
            for component in bundle.manifest.tokenizers
        ]

    def read(self, text: str, options: PromptOptions) -> Reading:
        """Tokenize a text; raises RequestError."""
        return Reading(tuple(encoder.read(text, options) for encoder in self._encoders))

    def encode(
        self,
        readings: Sequence[Reading],
        chunks: int,
        clip_skips: Sequence[int],
        watch: Stopwatch | None = None,
    ) -> list[States]:
        """Return the states of each text, all padded to so many chunks.

        One text encoder reads all texts before the next is loaded.
        """
        watch = watch or Stopwatch()
        made = []
        for index, encoder in enumerate(self._encoders):
            prompts = [reading.prompts[index] for reading in readings]
            asked = list(zip(prompts, clip_skips, strict=True))
            for prompt, skip in asked:
                encoder.load(prompt, chunks, skip, watch)
            with watch("text_encoder"):
                made.append([encoder.encode(prompt, chunks, skip) for prompt, skip in asked])
        return [join_states(each) for each in zip(*made, strict=True)]


def unet_rows(
    states: Sequence[States], size: tuple[int, int], recipe: Recipe
) -> Mapping[str, Float]:
    """Return the UNet's inputs besides picture and timestep by name, one row for each text.

    size : (height, width) of the picture in pixels.
    """
    rows = {"encoder_hidden_states": np.concatenate([each.hidden for each in states])}
    if recipe == "clip-pair":
        rows["text_embeds"] = np.concatenate([each.pooled for each in states])
        rows["time_ids"] = np.tile(time_ids(size), (len(states), 1))
    return rows


def time_ids(size: tuple[int, int]) -> Float:
    """Return SDXL's numbers of a picture that is neither cropped nor scaled, float32 (6,).

    They are the original's height and width, the crop's top and left, the target's height and
    width (section 2.2 of the paper).
    """
    return np.array([*size, 0, 0, *size], np.float32)


def silence(states: States) -> States:
    """Return zeros in place of a text's states, as SDXL was trained with for no text at all."""
    return States(np.zeros_like(states.hidden), np.zeros_like(states.pooled))


def _graphs_of(component: str, open_graph: OpenGraph) -> Callable[[str, Stopwatch | None], Engine]:
    return lambda variant, watch: open_graph(component, variant, watch)


def join_states(states: Sequence[States]) -> States:
    """Put one text's states side by side; the last text encoder has the pooled vector."""
    hidden = np.concatenate([each.hidden for each in states], axis=-1)
    return States(hidden, states[-1].pooled)
