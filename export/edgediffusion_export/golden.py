"""Golden cases: the seeded inputs by which every graph is measured, here and on any machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgediffusion.manifest import GoldenCase, GraphSpec, Noise, Stored, TensorSpec
from edgediffusion.text_conditions import time_ids
from edgediffusion_export.architecture import Architecture

Array = NDArray[np.generic]

PROMPTS: Final = (
    "",
    "a red circle above a blue square on a white background",
    "An oil painting of 3 ships in a storm, dramatic light, highly detailed, " * 12,
)
"""Empty, ordinary, and longer than any text encoder takes."""

MOMENTS: Final = (0.95, 0.5, 0.0)
"""Where in the noise schedule the UNet is measured: start, middle, end."""

SEEDS: Final = (11, 12)
PICTURE_SCALE: Final = 0.5
SAMPLED: Final = 1 << 15
"""Outputs of more than twice this many numbers are compared at this many places."""
TEXT_BYTES: Final = 1 << 20
"""Text states up to this size are stored; for larger batches noise of their scale stands in."""


@dataclass
class Golden:
    """The golden tensors of one component and the texts' states that flow between components."""

    tensors: dict[str, Array] = field(default_factory=dict)

    def keep(self, name: str, array: Array) -> Stored:
        """Store an input or output under ``name``."""
        self.tensors[name] = np.ascontiguousarray(array)
        return Stored(name)

    def keep_output(self, name: str, array: Array) -> Stored:
        """Store an output, or a sample of it with the places that were sampled."""
        flat = array.astype(np.float32).reshape(-1)
        if flat.size <= 2 * SAMPLED:
            return self.keep(name, flat.reshape(array.shape))
        places = f"places.{flat.size}"
        if places not in self.tensors:
            draw = np.random.Generator(np.random.PCG64(flat.size))
            chosen = draw.choice(flat.size, SAMPLED, replace=False)
            self.tensors[places] = np.sort(chosen).astype(np.int64)
        return Stored(self.keep(name, flat[self.tensors[places]]).tensor, places)


def text_cases(golden: Golden, ids: Sequence[NDArray[np.int64]]) -> list[GoldenCase]:
    """One case for each tokenized prompt."""
    return [
        GoldenCase(_inputs(input_ids=golden.keep(f"input_ids.{i}", row)), {})
        for i, row in enumerate(ids)
    ]


def prompt_cases(
    golden: Golden, spec: GraphSpec, ids: Sequence[NDArray[np.int64]], scale: float
) -> list[GoldenCase]:
    """An ordinary prompt as it is, and with embeddings of the given scale in it.

    The embeddings are the first, the last and again the first of those that the graph takes.
    """
    last = _input(spec, "extra_embeddings").shape[0]
    learned = ids[1].copy()
    learned[0, 2:5] = [-1, -last, -1]
    stored = [golden.keep("input_ids.1", ids[1]), golden.keep("input_ids.learned", learned)]
    extra = Noise(len(PROMPTS) + 1, scale)
    return [GoldenCase(_inputs(input_ids=row, extra_embeddings=extra), {}) for row in stored]


def unet_cases(
    golden: Golden,
    spec: GraphSpec,
    texts: Mapping[str, NDArray[np.float32]],
    architecture: Architecture,
    deep_scale: float = 1.0,
) -> list[GoldenCase]:
    """Unit noise at the start, the middle and the end of the schedule, with real text states.

    texts : what the golden prompts are to the UNet, one row each, by the names of its inputs.

    A graph that takes features from another gets noise of their scale.
    """
    text = {name: _text_input(golden, spec, name, rows) for name, rows in texts.items()}
    if any(tensor.name == "time_ids" for tensor in spec.inputs):
        assert spec.size is not None
        rows = np.tile(time_ids(spec.size), (spec.batch, 1))
        text["time_ids"] = golden.keep(f"time_ids.{spec.size}.b{spec.batch}", rows)
    cases = []
    for seed, moment in enumerate(MOMENTS):
        timestep = 1 + int(moment * architecture.train_timesteps)
        stored = golden.keep(f"timestep.{timestep}", np.array([timestep], np.float32))
        inputs = _inputs(sample=Noise(seed), timestep=stored, **text)
        if any(tensor.name == "deep_features" for tensor in spec.inputs):
            inputs["deep_features"] = Noise(len(MOMENTS) + seed, deep_scale)
        cases.append(GoldenCase(inputs, {}))
    return cases


def noise_cases(spec: GraphSpec, scale: float) -> list[GoldenCase]:
    """Noise of a scale for graphs with a single input."""
    (tensor,) = spec.inputs
    return [GoldenCase({tensor.name: Noise(seed, scale)}, {}) for seed in SEEDS]


def latent_scale(component: str, architecture: Architecture) -> float:
    """The standard deviation of what a decoder gets, or of the picture that the encoder gets."""
    scales: Mapping[str, float] = {
        "vae_decoder": 1 / abs(architecture.scaling_factor),
        "vae_encoder": PICTURE_SCALE,
        "vae_tiny_decoder": 1.0,
    }
    return scales[component]


def _inputs(**recipes: Noise | Stored) -> dict[str, Noise | Stored]:
    return recipes


def _input(spec: GraphSpec, name: str) -> TensorSpec:
    return next(tensor for tensor in spec.inputs if tensor.name == name)


def _text_input(
    golden: Golden, spec: GraphSpec, name: str, states: NDArray[np.float32]
) -> Stored | Noise:
    """The states of the first prompts in turn, as guidance stacks them; noise for long prompts."""
    rows = np.concatenate([states[i % len(states)][None] for i in range(spec.batch)])
    if rows.shape != _input(spec, name).shape or rows.nbytes > TEXT_BYTES:
        return Noise(len(PROMPTS), math.sqrt(float(np.mean(np.square(states)))))
    return golden.keep(f"{name}.b{spec.batch}", rows)
