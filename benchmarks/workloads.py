"""Workloads as data: which checkpoint, how large a picture, how many steps.

Every contender gets the same checkpoint, the same first noise, prompt and guidance, and steps
through the same noise levels: Euler with trailing spacing. All programs have it, and it begins at
the highest level whatever the number of steps, so that even one step gives a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgediffusion.errors import RequestError, choices

STAGES: Final = ("text_encoder", "unet_b1", "unet_b2", "scheduler", "vae_decode")
"""What is timed by itself; beside it ``end_to_end_N``, whole pictures of N steps."""

SCHEDULER: Final[Mapping[str, Any]] = {
    "_class_name": "EulerDiscreteScheduler",
    "timestep_spacing": "trailing",
}
"""What the checkpoint's own scheduler configuration is overwritten with."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One task for all contenders.

    architecture : the demo's checkpoint (``shapes``) or a name of ``make_checkpoint.py``.
    size : (height, width) in pixels.
    batch : pictures made at once.
    steps : numbers of sampler steps of the whole pictures.
    first_steps : steps of a cold start's first picture, which is also the one that is compared.
    dtype : how the checkpoint's weights are stored.
    device : what the contenders run on.
    rounds : how often everything is measured.
    counts : stages that are measured in the first rounds only, because they take long.
    resident : every contender stays in memory from round to round; otherwise one at a time is
        there, started anew in every round.
    limit_s : how long one answer of a contender may take, in seconds.
    """

    architecture: str
    size: tuple[int, int]
    batch: int = 1
    steps: tuple[int, ...] = (1, 4, 20)
    first_steps: int = 4
    dtype: str = "fp16"
    device: str = "cpu"
    prompt: str = "a photograph of an astronaut riding a horse"
    negative: str = ""
    guidance: float = 7.5
    seed: int = 7
    rounds: int = 5
    counts: Mapping[str, int]
    resident: bool = False
    limit_s: float = 1800.0

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of everything that is measured in a loaded contender."""
        return (*STAGES, *(f"end_to_end_{steps}" for steps in self.steps))

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """The shape of the noise: four channels at an eighth of the picture's size."""
        height, width = self.size
        return (self.batch, 4, height // 8, width // 8)


# Pictures of several steps at full size take minutes with every contender: measured once.
FULL_SIZE_ROUNDS: Final = 3
FULL_SIZE_COUNTS: Final = {"end_to_end_4": 1, "end_to_end_20": 1}

WORKLOADS: Final[Mapping[str, Workload]] = {
    "shapes": Workload(
        architecture="shapes",
        size=(128, 128),
        prompt="a red circle above a blue square",
        guidance=3.0,
        rounds=20,
        counts={"cold_start": 3},
        resident=True,
        limit_s=300.0,
    ),
    "sd15-512": Workload(
        architecture="sd15",
        size=(512, 512),
        rounds=FULL_SIZE_ROUNDS,
        counts=FULL_SIZE_COUNTS,
    ),
    "sd21-512": Workload(
        architecture="sd21-base",
        size=(512, 512),
        rounds=FULL_SIZE_ROUNDS,
        counts=FULL_SIZE_COUNTS,
    ),
    "sd21-768": Workload(
        architecture="sd21",
        size=(768, 768),
        rounds=FULL_SIZE_ROUNDS,
        counts=FULL_SIZE_COUNTS,
    ),
    "sdxl-1024": Workload(
        architecture="sdxl",
        size=(1024, 1024),
        rounds=FULL_SIZE_ROUNDS,
        counts=FULL_SIZE_COUNTS,
        limit_s=3600.0,
    ),
}


def find_workload(name: str) -> Workload:
    """Look a workload up; raises RequestError that names the near ones."""
    if name not in WORKLOADS:
        raise RequestError(f"unknown workload {name!r}: {choices(name, WORKLOADS)}")
    return WORKLOADS[name]
