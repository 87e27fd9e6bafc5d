"""The contenders of one piece: who opened, with how much memory, and who is absent and why."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch

from benchmarks.gpu_tables import COPY, PRODUCT
from edgediffusion.cuda_driver import free_memory
from edgediffusion.rounds import measure

_SIDE: Final = 8192
_COPIED: Final = 1 << 30
_REST_S: Final = 0.002

Call = Callable[[], object]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Ceiling:
    """Work that nothing but the GPU limits: operations or bytes of one call."""

    work: float
    run: Call


class Failed(Exception):
    """A contender failed while it was measured; its own error is the cause."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass
class Field:
    """The contenders that opened, the memory that each took in MiB, and why others are absent."""

    calls: dict[str, Call] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, opened: Callable[[], Call], held: int = 0) -> None:
        """Open one; whatever goes wrong there is that contender's, and the others go on.

        held : bytes that it needs and that are on the GPU already, from another one before it.
        """
        release_unused()
        before = free_memory()
        try:
            self.calls[name] = opened()
        except Exception as error:
            self.absent[name] = say_failure(error)
        self.memory[name] = (before - free_memory() + held) / 2**20

    def measured(self, rounds: int, say: Say) -> dict[str, list[float]]:
        """Milliseconds of all in turns; who fails becomes absent, and the others begin again."""
        while True:
            try:
                return measure(
                    {name: _named(name, call) for name, call in self.calls.items()},
                    rounds,
                    say,
                    _REST_S,
                )
            except Failed as failure:
                del self.calls[failure.name]
                self.absent[failure.name] = say_failure(failure.__cause__ or failure)


def _named(name: str, call: Call) -> Call:
    def run() -> None:
        try:
            call()
        except Exception as error:
            raise Failed(name) from error

    return run


def say_failure(error: BaseException) -> str:
    """The kind of an error and the first line of its message, which may be empty."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *(f"{line:.200}" for line in lines[:1])])


def release_unused() -> None:
    """Let PyTorch give back what it only keeps, so that the next one's memory is its own."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def gpu_ceilings() -> Mapping[str, Callable[[], Ceiling]]:
    """How to make each ceiling; it takes its memory when it is made."""
    return {PRODUCT: _product, COPY: _copy}


def _product(side: int = _SIDE) -> Ceiling:
    """A large fp16 product by PyTorch."""
    a, b, out = (torch.randn(side, side, device="cuda").half() for _ in range(3))

    def multiply() -> None:
        torch.mm(a, b, out=out)
        torch.cuda.synchronize()

    return Ceiling(2.0 * side**3, multiply)


def _copy(copied: int = _COPIED) -> Ceiling:
    """A copy within the GPU's memory: each byte is read and written."""
    source, target = (torch.empty(copied, dtype=torch.uint8, device="cuda") for _ in range(2))

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return Ceiling(2.0 * copied, copy)
