"""An NVIDIA GPU as its driver describes it."""

from __future__ import annotations

from dataclasses import dataclass

Version = tuple[int, int]


@dataclass(frozen=True)
class Gpu:
    """A GPU, and the newest CUDA that its driver runs; ``memory`` in bytes."""

    name: str
    capability: Version
    memory: int
    cuda: Version

    @property
    def compute_capability(self) -> str:
        """The kind of GPU as NVIDIA writes it, like ``8.9``."""
        return say_version(self.capability)

    @property
    def driver(self) -> str:
        """The newest CUDA that the driver runs, like ``13.2``."""
        return say_version(self.cuda)


def cuda_version(number: int) -> Version:
    """Read CUDA's way to write a version: 13.2 is 13020."""
    return number // 1000, number % 1000 // 10


def say_version(version: Version) -> str:
    """Write a version like ``13.2``."""
    return f"{version[0]}.{version[1]}"
