"""What this machine's CPU is, as far as it decides which kernels and which arithmetic pay."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final, Literal, NamedTuple

_ISA_LIMIT: Final = "ONEDNN_MAX_CPU_ISA"
"""oneDNN's own switch, which OpenVINO obeys: kernels as on a lesser CPU."""

_AMD: Final = "AuthenticAMD"
_INT8_FLAGS: Final = frozenset({"avx512_vnni", "avx_vnni", "asimddp"})


class Cpu(NamedTuple):
    """A CPU in Linux' words; other systems tell no flags and no vendor."""

    model: str
    flags: frozenset[str]
    vendor: str = ""


@cache
def read_cpu() -> Cpu:
    """Return what this machine's CPU is."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        return Cpu(platform.processor() or platform.machine(), frozenset())
    flags = fields.get("flags") or fields.get("Features") or ""
    model = fields.get("model name") or platform.machine()
    return Cpu(model, frozenset(flags.split()), fields.get("vendor_id", ""))


def computes_bf16() -> bool:
    """Tell whether matrix products in bf16 are faster than in float32."""
    return bf16_unit() is not None


def bf16_unit() -> Literal["amx", "avx512"] | None:
    """Name the unit that multiplies in bf16, if that pays.

    With AMX they are, and on AMD since Zen 4, where the instructions of AVX512-BF16 take half the
    time: Stable Diffusion 1.5's step takes 0.5 of float32's. Intel has the same instructions at no
    gain (1.7 of float32's, docs/devices.md); without any of them bf16 is slow or fails.
    """
    _, flags, vendor = read_cpu()
    if "amx_bf16" in flags:
        return "amx" if _allowed("AMX") else None
    zen = vendor == _AMD and "avx512_bf16" in flags
    return "avx512" if zen and _allowed("AMX", "BF16", "FP16") else None


def _allowed(*names: str) -> bool:
    """Tell whether the limit that oneDNN was given, if any, is one of the kinds named."""
    limit = os.environ.get(_ISA_LIMIT, "").upper()
    return limit in ("", "ALL", "DEFAULT") or any(name in limit for name in names)


def computes_int8() -> bool:
    """Tell whether integer products are fast and exact: VNNI, or ARM's dot products.

    Other x86-64 CPUs add pairs of products up in 16 bits, where full-range weights overflow. A
    system that tells no flags counts as one of them.
    """
    return bool(read_cpu().flags & _INT8_FLAGS)


def cpu_facts() -> Mapping[str, str]:
    """Return what compiled code depends on: model, flags, and the limit that oneDNN was given."""
    model, flags, _ = read_cpu()
    limit = os.environ.get(_ISA_LIMIT, "").upper()
    return {"cpu": model, "cpu_flags": " ".join(sorted(flags)), "isa_limit": limit}
