"""Every error that edgediffusion raises on purpose.

::

    EdgeDiffusionError
    ├── BundleError            a bundle cannot be used
    │   ├── BundleNotFound     no bundle of that name or at that path
    │   ├── ManifestError      the manifest is missing, malformed, inconsistent or newer
    │   ├── IntegrityError     a file is missing, truncated or differs from its sha256
    │   └── UnsafePath         a path or link leaves the folder it belongs to
    ├── RequestError           what was asked for makes no sense (also a ValueError)
    ├── ScheduleError          a scheduler configuration cannot be honoured (also a ValueError)
    ├── DeviceError            a device is unknown, missing, or would not run everything itself
    ├── EngineError            a graph failed to load, to run, or got the wrong inputs
    ├── NumericalError         a component computed NaN, infinity or a flat picture
    ├── ParityError            a graph does not compute what its reference computes
    ├── CheckpointError        a checkpoint cannot be exported
    ├── OutputError            a result could not be written
    └── Cancelled              the caller cancelled the run

A message names what was got, what was expected, and the fix.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class EdgeDiffusionError(Exception):
    """Base of all errors that edgediffusion raises on purpose."""


class BundleError(EdgeDiffusionError):
    """A bundle cannot be used."""


class BundleNotFound(BundleError):
    """There is no bundle of that name or at that path."""


class ManifestError(BundleError):
    """``manifest.json`` is missing, malformed, inconsistent or of a newer format."""


class IntegrityError(BundleError):
    """A file of a bundle is missing, truncated or differs from its sha256."""


class UnsafePath(BundleError):
    """A path or a link leaves the folder it belongs to."""


class RequestError(EdgeDiffusionError, ValueError):
    """What was asked for makes no sense."""


class ScheduleError(EdgeDiffusionError, ValueError):
    """A scheduler configuration cannot be honoured."""


class DeviceError(EdgeDiffusionError):
    """A device is unknown, missing, or would not run everything itself."""


class EngineError(EdgeDiffusionError):
    """A graph failed to load, to run, or got the wrong inputs."""


class NumericalError(EdgeDiffusionError):
    """A component computed NaN, infinity or a flat picture."""


class ParityError(EdgeDiffusionError):
    """A graph does not compute what its reference computes."""


class CheckpointError(EdgeDiffusionError):
    """A checkpoint cannot be exported."""


class OutputError(EdgeDiffusionError):
    """A result could not be written."""


class Cancelled(EdgeDiffusionError):
    """The caller cancelled the run."""


def choices(got: str, known: Iterable[str]) -> str:
    """Say the near matches of ``got`` among ``known``, or list them all."""
    names = sorted(known)
    near = get_close_matches(got, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
