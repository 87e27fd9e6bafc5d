"""What this machine's CPU is, as far as it decides which kernels and which arithmetic pay."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

_ISA_LIMIT: Final = "ONEDNN_MAX_CPU_ISA"
"""oneDNN's own switch, which OpenVINO obeys: kernels as on a lesser CPU."""

_INT8_FLAGS: Final = frozenset({"avx512_vnni", "avx_vnni", "asimddp"})


@cache
def read_cpu() -> tuple[str, frozenset[str]]:
    """Return the CPU's model and its flags, in Linux' words; other systems tell no flags."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    flags = fields.get("flags") or fields.get("Features") or ""
    return fields.get("model name") or platform.machine(), frozenset(flags.split())


def computes_bf16() -> bool:
    """Tell whether matrix products in bf16 run on AMX; elsewhere bf16 gains nothing or fails."""
    limit = os.environ.get(_ISA_LIMIT, "").upper()
    allowed = limit in ("", "ALL", "DEFAULT") or "AMX" in limit
    return allowed and "amx_bf16" in read_cpu()[1]


def computes_int8() -> bool:
    """Tell whether integer products are fast and exact: VNNI, or ARM's dot products.

    Other x86-64 CPUs add pairs of products up in 16 bits, where full-range weights overflow. A
    system that tells no flags counts as one of them.
    """
    return bool(read_cpu()[1] & _INT8_FLAGS)


def cpu_facts() -> Mapping[str, str]:
    """Return what compiled code depends on: model, flags, and the limit that oneDNN was given."""
    model, flags = read_cpu()
    limit = os.environ.get(_ISA_LIMIT, "").upper()
    return {"cpu": model, "cpu_flags": " ".join(sorted(flags)), "isa_limit": limit}
