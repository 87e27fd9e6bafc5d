import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.energy import Counter, find_counters


def zone(powercap: Path, name: str, label: str, joules: float, most: float = 1000) -> Path:
    """A counter as Linux shows it, in microjoules."""
    folder = powercap / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n", encoding="ascii")
    (folder / "energy_uj").write_text(f"{joules * 1e6:.0f}\n", encoding="ascii")
    (folder / "max_energy_range_uj").write_text(f"{most * 1e6:.0f}\n", encoding="ascii")
    return folder


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


def test_the_energy_of_a_package_is_counted_without_its_parts(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    zone(tmp_path, "intel-rapl:0:0", "core", 60)
    zone(tmp_path, "intel-rapl:1", "package-1", 5)
    counters = find_counters(tmp_path)
    before = counters.read()
    assert before == {"package-0": 100, "package-1": 5}
    (package / "energy_uj").write_text("112500000\n", encoding="ascii")
    assert counters.since(before) == {"package-0": 12.5, "package-1": 0}
    assert "RAPL" not in counters.absent


def test_a_counter_that_started_again_goes_on() -> None:
    readings = iter([990.0, 15.0])
    counter = Counter("package-0", lambda: next(readings), range=1000)
    assert counter.since(counter.read()) == 25


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    counters = find_counters(tmp_path)
    assert counters.since(counters.read()) == {}
    assert "shows no counters: a virtual machine, or not Linux" in counters.absent["RAPL"]
    assert "pip install nvidia-ml-py" in counters.absent["NVML"]


def test_counters_for_root_only_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 100)

    def refuse(path: Path, **_: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    absent = find_counters(tmp_path).absent["RAPL"]
    assert "energy_uj cannot be read (Permission denied): run as root" in absent


class NVMLError(Exception):
    pass


def fake_nvml(millijoules: list[int]) -> SimpleNamespace:
    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(millijoules),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda index: millijoules[index],
    )


def test_gpus_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = [5_000, 70_000]
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(used))
    counters = find_counters(tmp_path)
    before = counters.read()
    used[1] += 2_500
    assert counters.since(before) == {"gpu-0": 0, "gpu-1": 2.5}


def test_a_gpu_without_a_counter_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = fake_nvml([1])

    def refuse(gpu: int) -> int:
        raise NVMLError("Not Supported")

    nvml.nvmlDeviceGetTotalEnergyConsumption = refuse
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert find_counters(tmp_path).absent["NVML"] == "NVML says: Not Supported"
