"""Which devices work here, and why the others don't."""

from __future__ import annotations

from dataclasses import dataclass

from edgediffusion.engine import BACKENDS, PLANNED

_RIVALS = ("onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")


@dataclass(frozen=True)
class DeviceReport:
    """One device: whether it works here, with the library that runs it or the reason against."""

    name: str
    works: bool
    detail: str


def devices() -> list[DeviceReport]:
    """Report on every device that edgediffusion knows of."""
    reports = [DeviceReport(name, *_probe()) for name in BACKENDS]
    planned = "not supported by this version of edgediffusion"
    return reports + [DeviceReport(name, False, planned) for name in PLANNED]


def _probe() -> tuple[bool, str]:
    try:
        import onnxruntime
    except ImportError as error:
        return (
            False,
            f"onnxruntime does not import ({error}): pip install --force-reinstall onnxruntime",
        )
    if clash := _clashing():
        return True, (
            f"ONNX Runtime {onnxruntime.__version__}; but {' and '.join(clash)} share one import "
            f"package: pip uninstall {' '.join(clash)}, then install the one you want"
        )
    return True, f"ONNX Runtime {onnxruntime.__version__}"


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
