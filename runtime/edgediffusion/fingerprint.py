"""What an engine depends on, and the one hash that changes when any of it does."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping

import msgspec

from edgediffusion._version import __version__
from edgediffusion.cpu import cpu_facts
from edgediffusion.engine import BACKENDS, Arithmetic, EngineOptions


def engine_facts(
    content: str, device: str, arithmetic: Arithmetic, options: EngineOptions
) -> dict[str, str]:
    """Return all that could change what an engine computes or how it was compiled.

    ``content`` is ``Bundle.content`` of the graph: the graph's hash and its weights'.
    """
    return {
        "content": content,
        "device": device,
        "arithmetic": arithmetic,
        "threads": str(options.threads),
        "edgediffusion": __version__,
        **libraries_of(device),
        **cpu_facts(),
    }


def libraries_of(device: str) -> Mapping[str, str]:
    """Return the libraries behind a device and their versions; raises DeviceError without them."""
    libraries: Mapping[str, str] = importlib.import_module(BACKENDS[device]).libraries()
    return libraries


def fingerprint(facts: Mapping[str, str]) -> str:
    """Return the sha256 of some facts, whatever their order, as lower-case hex."""
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()
