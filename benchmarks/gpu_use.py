"""How busy the GPUs are while something runs, as nvidia-smi tells."""

from __future__ import annotations

import shutil
import statistics
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

NVIDIA_SMI: Final = (
    "nvidia-smi",
    "--query-gpu=utilization.gpu",
    "--format=csv,noheader,nounits",
    "--loop-ms=100",
)


@dataclass
class GpuUse:
    """Mean use of all GPUs; None where it is not known, and ``absent`` says why.

    child : the program that watches, while it runs.
    """

    percent: float | None = None
    absent: str | None = None
    child: subprocess.Popen[str] | None = None


@contextmanager
def gpu_use(command: Sequence[str] = NVIDIA_SMI) -> Iterator[GpuUse]:
    """Watch the GPUs during a ``with`` block; what it gives out is filled in at the end."""
    use = GpuUse()
    program = shutil.which(command[0])
    if program is None:
        use.absent = f"no {command[0]} here"
        yield use
        return
    use.child = subprocess.Popen(
        [program, *command[1:]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield use
    finally:
        use.child.terminate()
        samples = list(_numbers(use.child.communicate()[0].splitlines()))
        if samples:
            use.percent = statistics.fmean(samples)
        else:
            use.absent = f"{command[0]} told no use"


def _numbers(lines: Iterable[str]) -> Iterator[float]:
    for line in lines:
        with suppress(ValueError):  # a line cut short, or "[N/A]"
            yield float(line)
