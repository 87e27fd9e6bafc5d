"""Counters of the energy that the machine used, where it has them and lets us read them.

    counters = find_counters()
    before = counters.read()
    ...
    joules = counters.since(before)      # {"package-0": 12.3}; empty where nothing counts

Linux shows the processor's counters (RAPL) under /sys/class/powercap, as a rule to root only.
NVIDIA GPUs show theirs through NVML (``pip install nvidia-ml-py``). ``absent`` says why one is not
there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

POWERCAP: Final = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Counter:
    """Joules since some moment; starts again at 0 when it reaches ``range`` (None: never)."""

    name: str
    read: Callable[[], float]
    range: float | None = None

    def since(self, before: float) -> float:
        """Joules since an earlier reading, over at most one new start."""
        used = self.read() - before
        return used + self.range if used < 0 and self.range else used


@dataclass(frozen=True)
class Counters:
    """The counters of a machine; ``absent`` maps the others to the reason."""

    found: tuple[Counter, ...]
    absent: Mapping[str, str]

    def read(self) -> dict[str, float]:
        """Return the joules of every counter."""
        return {counter.name: counter.read() for counter in self.found}

    def since(self, before: Mapping[str, float]) -> dict[str, float]:
        """Return the joules that each counter counted since ``before`` was read."""
        return {counter.name: counter.since(before[counter.name]) for counter in self.found}


def find_counters(powercap: Path = POWERCAP) -> Counters:
    """Find what this machine counts."""
    found: list[Counter] = []
    absent = {}
    for name, find in (("RAPL", partial(_rapl, powercap)), ("NVML", _nvml)):
        try:
            found += find()
        except LookupError as error:
            absent[name] = str(error.args[0])
    return Counters(tuple(found), absent)


def _rapl(powercap: Path) -> list[Counter]:
    """One counter for each whole zone (a package, the platform); their parts are left out."""
    zones = sorted(zone for zone in powercap.glob("*:*") if zone.name.count(":") == 1)
    if not zones:
        raise LookupError(f"{powercap} shows no counters: a virtual machine, or not Linux")
    try:
        return [_zone(zone) for zone in zones]
    except OSError as error:
        raise LookupError(
            f"{error.filename} cannot be read ({error.strerror}): run as root"
        ) from error


def _zone(zone: Path) -> Counter:
    read = partial(_joules, zone / "energy_uj")
    read()
    name = (zone / "name").read_text(encoding="ascii").strip()
    return Counter(name, read, _joules(zone / "max_energy_range_uj"))


def _joules(path: Path) -> float:
    return int(path.read_text(encoding="ascii")) / 1e6


def _nvml() -> list[Counter]:
    """One counter for each GPU."""
    try:
        import pynvml
    except ImportError:
        raise LookupError("no module pynvml: pip install nvidia-ml-py") from None
    try:
        pynvml.nvmlInit()
        return list(_gpus(pynvml))
    except pynvml.NVMLError as error:
        raise LookupError(f"NVML says: {error}") from error


def _gpus(nvml: Any) -> Iterator[Counter]:
    for index in range(nvml.nvmlDeviceGetCount()):
        gpu = nvml.nvmlDeviceGetHandleByIndex(index)
        counter = Counter(f"gpu-{index}", partial(_gpu_joules, nvml, gpu))
        counter.read()  # GPUs before Volta have none
        yield counter


def _gpu_joules(nvml: Any, gpu: Any) -> float:
    return float(nvml.nvmlDeviceGetTotalEnergyConsumption(gpu)) / 1e3
