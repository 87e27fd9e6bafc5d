from __future__ import annotations

from typing import Any

import pytest

import edgediffusion as ed
from edgediffusion import cuda_driver
from edgediffusion.cuda_driver import free_memory, read_gpu
from tests.runtime.nvidia import A_GPU, FakeDriver


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    def do(driver: FakeDriver) -> FakeDriver:
        monkeypatch.setattr(cuda_driver, "_open", lambda name: driver)
        return driver

    return do


def test_the_driver_tells_of_its_first_gpu(install: Any) -> None:
    driver = install(FakeDriver())
    assert read_gpu() == A_GPU
    assert driver.calls[0] == "cuInit"


def test_free_memory_is_asked_in_a_context_that_is_given_back(install: Any) -> None:
    driver = install(FakeDriver(free=123 * 2**20))
    assert free_memory() == 123 * 2**20
    assert driver.calls[-5:] == [
        "cuDevicePrimaryCtxRetain",
        "cuCtxPushCurrent_v2",
        "cuMemGetInfo_v2",
        "cuCtxPopCurrent_v2",
        "cuDevicePrimaryCtxRelease_v2",
    ]


def test_a_context_is_given_back_after_a_failure(install: Any) -> None:
    driver = install(FakeDriver(codes={"cuMemGetInfo_v2": 2}))
    with pytest.raises(ed.DeviceError, match="fails at cuMemGetInfo_v2 with error 2"):
        free_memory()
    assert driver.calls[-2:] == ["cuCtxPopCurrent_v2", "cuDevicePrimaryCtxRelease_v2"]


def test_no_driver_is_an_error_that_names_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libnodriver.so.1")
    with pytest.raises(ed.DeviceError, match=r"needs NVIDIA's driver, .*libnodriver\.so\.1.* inst"):
        read_gpu()


def test_a_driver_without_a_gpu_is_named(install: Any) -> None:
    install(FakeDriver(codes={"cuInit": 100}))
    with pytest.raises(ed.DeviceError, match=r"installed and sees no GPU\. Look at nvidia-smi"):
        read_gpu()


def test_a_driver_that_fails_is_quoted(install: Any) -> None:
    install(FakeDriver(codes={"cuInit": 803}))
    said = "fails at cuInit with CUDA_ERROR_SYSTEM_DRIVER_MISMATCH. Does nvidia-smi work"
    with pytest.raises(ed.DeviceError, match=said):
        read_gpu()
