"""OpenVINO as a plugin of stock ONNX Runtime, for Intel's CPUs: ``onnxruntime-ep-openvino``.

All of a graph runs in OpenVINO, or it is an error: ONNX Runtime's own habit of handing what a
provider refuses to its CPU provider is switched off, and what was assigned is read back.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from edgediffusion.assignment import RECORD, WHOLE, elsewhere, say_operators
from edgediffusion.engine import Arithmetic
from edgediffusion.engine_ort import first_line
from edgediffusion.errors import DeviceError, EngineError
from edgediffusion.external_data import check_locations

_PACKAGE: Final = "onnxruntime_ep_openvino"
INSTALL: Final = 'pip install "edgediffusion[openvino]"'
_PROVIDER: Final = "OpenVINOExecutionProvider"
_LIBRARY: Final = "edgediffusion.openvino"
_INTEL: Final = 0x8086
"""Intel's number as a vendor; the plugin lists no other's CPUs (onnxruntime#31981)."""
_SILENT: Final = 4  # errors come as exceptions; ONNX Runtime would print them as well
_FILE: Final = "compiled.onnx"
_CONTEXT: Final = {"ep.context_enable": "1", "ep.context_embed_mode": "0"}
"""Write what OpenVINO compiled beside a graph that refers to it."""

_registering = threading.Lock()


def serves_this_cpu() -> bool:
    """Tell whether the plugin is made for this system and processor, installed or not."""
    machine = platform.machine().lower()
    if sys.platform not in ("linux", "win32") or machine not in ("x86_64", "amd64"):
        return False
    kind = ort.OrtHardwareDeviceType.CPU
    vendors = {d.device.vendor_id for d in ort.get_ep_devices() if d.device.type == kind}
    return _INTEL in vendors


def is_installed() -> bool:
    """Tell whether the plugin is there, without loading it."""
    return importlib.util.find_spec(_PACKAGE) is not None


def libraries() -> dict[str, str]:
    """Return the libraries that compute here, with their versions. Raises DeviceError."""
    version = dict(cpu_device().ep_metadata)["version"]
    return {"onnxruntime": ort.__version__, "onnxruntime-ep-openvino": version}


def describe() -> str:
    """Name OpenVINO's version and where it comes from. Raises DeviceError."""
    plugin = libraries()["onnxruntime-ep-openvino"].partition("+")[0]
    return f"OpenVINO {openvino_version()} in plugin {plugin} for ONNX Runtime {ort.__version__}"


def compiler(arithmetic: Arithmetic, settings: Mapping[str, str]) -> OpenVinoCompiler:
    """Return what compiles graphs, with OpenVINO's own ``settings``. Raises DeviceError."""
    return OpenVinoCompiler(cpu_device(), arithmetic, settings)


def openvino_version() -> str:
    """Return the version of the OpenVINO inside the plugin; it is named nowhere but in its library.

    Raises DeviceError where the plugin is not installed.
    """
    folder = _library().parent
    for library in sorted([*folder.glob("libopenvino.so*"), *folder.glob("openvino.dll")]):
        if found := re.search(rb"(20\d\d\.\d+\.\d+)-\d+-[0-9a-f]{7,}", library.read_bytes()):
            return found[1].decode()
    return "of unknown version"


def cpu_device() -> Any:
    """Return OpenVINO's CPU as ONNX Runtime's device; loads the plugin, once in a process.

    The plugin stays registered until the process ends: unregistering needs every session of it
    gone, and a host program may have some of its own. Raises DeviceError.
    """
    library = _library()
    with _registering:
        if not _devices(library):
            try:
                ort.register_execution_provider_library(_LIBRARY, str(library))
            except Exception as error:
                raise DeviceError(
                    f"the OpenVINO plugin does not load: {first_line(error)}. Reinstall it with "
                    f"{INSTALL} --force-reinstall, or use device 'cpu'"
                ) from error
    if found := _devices(library):
        return found[0]
    raise DeviceError("the OpenVINO plugin offers no CPU device on this machine: use device 'cpu'")


def _devices(library: Path) -> list[Any]:
    """OpenVINO's CPU among ONNX Runtime's devices, whoever registered the plugin."""
    return [
        device
        for device in ort.get_ep_devices()
        if device.ep_name == _PROVIDER
        and device.ep_metadata.get("ov_device") == "CPU"
        and Path(device.ep_metadata.get("library_path", library)) == library
    ]


def _library() -> Path:
    if not is_installed():
        raise DeviceError(f"device 'openvino' needs a plugin that is not installed: {INSTALL}")
    plugin = importlib.import_module(_PACKAGE)
    try:
        return Path(plugin.get_library_path())
    except FileNotFoundError as error:
        raise DeviceError(f"{error}: {INSTALL} --force-reinstall") from error


@dataclass(frozen=True)
class OpenVinoCompiler:
    """OpenVINO on ``device``, which is ONNX Runtime's object for it."""

    device: Any
    arithmetic: Arithmetic
    settings: Mapping[str, str]
    pooled: bool = False  # OpenVINO keeps its memory to itself

    def compile(self, path: Path, folder: Path | None = None) -> ort.InferenceSession:
        """Compile the graph at ``path``; leave in ``folder`` what ``load`` needs."""
        check_locations(path)
        written = {} if folder is None else _CONTEXT | {"ep.context_file_path": str(folder / _FILE)}
        return self._whole(path, written)

    def load(self, folder: Path) -> ort.InferenceSession:
        """Load what was compiled before."""
        return self._whole(folder / _FILE, {})

    def _whole(self, path: Path, entries: dict[str, str]) -> ort.InferenceSession:
        """Open a graph of which nothing runs elsewhere."""
        try:
            session = self._open(path, entries | WHOLE)
        except Exception as error:
            if left := self._left_over(path):
                raise EngineError(_say_left_over(path, left)) from error
            raise EngineError(f"{path} does not load in OpenVINO: {first_line(error)}") from error
        if left := elsewhere(session, _PROVIDER):
            raise EngineError(_say_left_over(path, left))
        return session

    def _open(self, path: Path, entries: dict[str, str]) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = _SILENT
        for key, value in (entries | RECORD).items():
            options.add_session_config_entry(key, value)
        config = json.dumps({"CPU": dict(self.settings)})
        options.add_provider_for_devices([self.device], {"load_config": config})
        return ort.InferenceSession(str(path), sess_options=options, enable_fallback=False)

    def _left_over(self, path: Path) -> Counter[str]:
        """Load a refused graph once more, with the fallback, to learn what it would take."""
        try:
            return elsewhere(self._open(path, {}), _PROVIDER)
        except Exception:
            return Counter()  # it is refused for another reason, which the caller has


def _say_left_over(path: Path, left: Counter[str]) -> str:
    return (
        f"{path}: OpenVINO does not take all of the graph, {say_operators(left)} would run on ONNX "
        "Runtime's CPU provider. Use device 'cpu', or export the model without these operators"
    )
