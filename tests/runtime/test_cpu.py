from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgediffusion import cpu

INFO = """processor : 0
vendor_id : {vendor}
model name : Some Xeon
flags : fpu avx2 {more}

processor : 1
model name : Other
"""


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands in for /proc/cpuinfo."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(cpu, "Path", lambda _: file)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    cpu.read_cpu.cache_clear()
    monkeypatch.setattr(cpu, "read_cpu", cpu.read_cpu.__wrapped__)
    return file


@pytest.mark.parametrize(
    ("vendor", "more", "bf16"),
    [
        ("GenuineIntel", "amx_bf16 amx_tile", True),
        ("GenuineIntel", "avx512_bf16", False),
        ("AuthenticAMD", "avx512_bf16", True),
        ("AuthenticAMD", "avx512f", False),
    ],
)
def test_where_bf16_pays(cpuinfo: Path, vendor: str, more: str, bf16: bool) -> None:
    cpuinfo.write_text(INFO.format(vendor=vendor, more=more))
    assert cpu.computes_bf16() is bf16
    assert cpu.cpu_facts()["cpu"] == "Some Xeon"
    assert cpu.cpu_facts()["cpu_flags"] == " ".join(sorted(["fpu", "avx2", *more.split()]))


@pytest.mark.parametrize(
    ("limit", "amx", "zen"),
    [
        ("", True, True),
        ("all", True, True),
        ("AVX512_CORE_AMX", True, True),
        ("AVX512_CORE_BF16", False, True),
        ("AVX512_CORE_VNNI", False, False),
    ],
)
def test_a_lesser_cpu_that_is_emulated_counts(
    cpuinfo: Path, monkeypatch: pytest.MonkeyPatch, limit: str, amx: bool, zen: bool
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    cpuinfo.write_text(INFO.format(vendor="AuthenticAMD", more="avx512_bf16"))
    assert cpu.computes_bf16() is zen
    cpuinfo.write_text(INFO.format(vendor="GenuineIntel", more="avx512_bf16 amx_bf16"))
    assert cpu.computes_bf16() is amx
    assert cpu.cpu_facts()["isa_limit"] == limit.upper()


def test_arm_calls_its_flags_features(cpuinfo: Path) -> None:
    cpuinfo.write_text("Features : asimd bf16\n")
    assert cpu.cpu_facts()["cpu_flags"] == "asimd bf16"


@pytest.mark.usefixtures("cpuinfo")
def test_a_system_that_tells_no_flags_has_no_bf16() -> None:
    assert cpu.computes_bf16() is False
    assert cpu.cpu_facts()["cpu"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the flags")
def test_this_machine_tells_its_flags() -> None:
    assert cpu.read_cpu()[1]


@pytest.mark.parametrize(
    ("more", "fast"),
    [("avx512_vnni", True), ("avx_vnni", True), ("asimddp", True), ("avx512f", False)],
)
def test_int8_pays_with_dot_products(cpuinfo: Path, more: str, fast: bool) -> None:
    cpuinfo.write_text(INFO.format(vendor="AuthenticAMD", more=more))
    assert cpu.computes_int8() is fast
