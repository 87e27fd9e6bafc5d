"""Presets: measured ways to trade a little quality for a lot of time, by one word."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "fast": MappingProxyType(
            {
                "steps": 10,
                "sampler": "dpmpp_2m",
                "guidance_interval": (1.0, float("inf")),
            }
        ),
    }
)
"""Name to the fields of a request that it fills, where the request says nothing itself.

docs/speed.md has the measurements that they were chosen by.
"""
