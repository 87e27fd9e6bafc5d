"""The version of NVIDIA's driver, from made-up files and a made-up library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgediffusion import nvidia_driver
from edgediffusion.nvidia_driver import driver_version

PROPRIETARY = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5
GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)
"""
OPEN = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build
GCC version:  gcc version 13.3.0
"""


class FakeNvml:
    """As much of NVML as is called; ``failing`` names the call that fails."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == self.failing:
                return 999
            if name == "nvmlSystemGetDriverVersion":
                text, length = arguments
                assert length == len(text)
                text.value = b"581.15"
            return 0

        return call


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeNvml:
    """NVML where no file tells the version."""
    made = FakeNvml()
    monkeypatch.setattr(nvidia_driver, "_FILE", tmp_path / "version")
    monkeypatch.setattr(nvidia_driver, "_open", lambda name: made)
    return made


@pytest.mark.parametrize(("text", "version"), [(PROPRIETARY, "550.54.15"), (OPEN, "580.65.06")])
def test_linux_tells_it_in_a_file(nvml: FakeNvml, tmp_path: Path, text: str, version: str) -> None:
    (tmp_path / "version").write_text(text)
    assert driver_version() == version
    assert not nvml.calls


@pytest.mark.parametrize("text", [None, "a driver of another kind\n"])
def test_elsewhere_the_management_library_tells_it(
    nvml: FakeNvml, tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "version").write_text(text)
    assert driver_version() == "581.15"
    assert nvml.calls == ["nvmlInit_v2", "nvmlSystemGetDriverVersion", "nvmlShutdown"]


@pytest.mark.parametrize("failing", ["nvmlInit_v2", "nvmlSystemGetDriverVersion"])
def test_a_library_that_fails_tells_nothing(nvml: FakeNvml, failing: str) -> None:
    nvml.failing = failing
    assert driver_version() is None
    assert ("nvmlShutdown" in nvml.calls) == (failing != "nvmlInit_v2")


def test_without_a_driver_there_is_no_version(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(nvidia_driver, "_FILE", Path("no/such/file"))
    monkeypatch.setattr(nvidia_driver, "LIBRARY", "libnodriver.so.1")
    assert driver_version() is None
