"""Which devices work here, and why the others don't."""

from __future__ import annotations

from dataclasses import dataclass

from edgediffusion.byte_sizes import say_bytes
from edgediffusion.cpu import computes_bf16
from edgediffusion.errors import DeviceError, EdgeDiffusionError

BF16_PAYS = "bf16 pays with AMX, and with AVX512-BF16 on AMD"
_RIVALS = ("onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")


@dataclass(frozen=True)
class DeviceReport:
    """One device: whether it works here, with the library that runs it or the reason against."""

    name: str
    works: bool
    detail: str


def devices() -> list[DeviceReport]:
    """Report on every device that edgediffusion knows of."""
    try:
        import onnxruntime
    except ImportError as error:
        fix = f"onnxruntime does not import ({error}): pip install --force-reinstall onnxruntime"
        rows = [DeviceReport(name, False, fix) for name in ("cpu", "openvino", "cuda")]
        return [*rows, *_tensorrt()]
    version = f"ONNX Runtime {onnxruntime.__version__}"
    cpu = DeviceReport("cpu", True, "; but ".join([f"{version}, computes in fp32", *_clash()]))
    return [cpu, _openvino(), _cuda(), *_tensorrt()]


def _openvino() -> DeviceReport:
    """Load it and ask it, because being installed is not working."""
    from edgediffusion.engine_openvino import describe

    try:
        openvino = describe()
    except DeviceError as error:
        return DeviceReport("openvino", False, str(error))
    arithmetic = "bf16" if computes_bf16() else f"fp32 ({BF16_PAYS})"
    return DeviceReport("openvino", True, f"{openvino}, computes in {arithmetic}")


def _cuda() -> DeviceReport:
    """Open a graph of one operator there."""
    from edgediffusion.engine_cuda import libraries

    try:
        found = libraries()
    except DeviceError as error:
        return DeviceReport("cuda", False, str(error))
    return DeviceReport(
        "cuda",
        True,
        f"{found['gpu']}, driver for {found['driver']}, onnxruntime-gpu {found['onnxruntime-gpu']} "
        f"for CUDA {found['cuda']}, computes in fp16 and tf32 as the bundle says",
    )


def _tensorrt() -> list[DeviceReport]:
    """Load each library of TensorRT and look for a GPU."""
    from edgediffusion.cuda_runtime import open_cuda
    from edgediffusion.tensorrt_library import TENSORRT, TENSORRT_RTX

    rows = []
    for library in (TENSORRT, TENSORRT_RTX):
        try:
            version, gpu = library.load().__version__, open_cuda(library).gpu
        except EdgeDiffusionError as error:
            rows.append(DeviceReport(library.device, False, str(error)))
            continue
        detail = (
            f"{library.title} {version} on {gpu.name}, compute capability "
            f"{gpu.compute_capability}, {say_bytes(gpu.memory)}, computes in fp16"
        )
        rows.append(DeviceReport(library.device, True, detail))
    return rows


def _clash() -> list[str]:
    if clash := _clashing():
        names = " ".join(clash)
        return [
            f"{' and '.join(clash)} share one import package: pip uninstall {names}, then install "
            "the one you want"
        ]
    return []


def _clashing() -> list[str]:
    """Distributions that overwrite each other's files, where more than one is installed."""
    from importlib import metadata  # costs more than the rest of this module's imports together

    found = []
    for name in ("onnxruntime", *_RIVALS):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found if len(found) > 1 else []
