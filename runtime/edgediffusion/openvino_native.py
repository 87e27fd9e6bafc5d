"""OpenVINO through its own package, for CPUs that the plugin of ONNX Runtime leaves out.

The plugin serves Intel's CPUs only (microsoft/onnxruntime#31981). OpenVINO itself runs on AMD's and
on ARM's, too, and takes all of a graph or none of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgediffusion.engine import Arithmetic
from edgediffusion.engine_ort import first_line
from edgediffusion.errors import DeviceError, EngineError
from edgediffusion.external_data import check_locations

_PACKAGE: Final = "openvino"
INSTALL: Final = 'pip install "edgediffusion[openvino-native]"'
_DEVICE: Final = "CPU"
_FILE: Final = "compiled.bin"
_HEADINGS: Final = ("FrontEnd API failed", "Model wasn't fully converted", "Summary:")
"""Lines of OpenVINO's messages that say nothing yet."""


def is_installed() -> bool:
    """Tell whether the package is there, without loading it."""
    return importlib.util.find_spec(_PACKAGE) is not None


def libraries() -> dict[str, str]:
    """Return the libraries that compute here, with their versions. Raises DeviceError."""
    return {"openvino": _openvino().__version__}


def describe() -> str:
    """Name OpenVINO's version and where it comes from. Raises DeviceError."""
    return f"OpenVINO {libraries()['openvino'].partition('-')[0]} of package openvino"


def compiler(arithmetic: Arithmetic, settings: Mapping[str, str]) -> NativeCompiler:
    """Return what compiles graphs, with OpenVINO's own ``settings``. Raises DeviceError."""
    return NativeCompiler(_core(), arithmetic, settings)


@cache
def _core() -> Any:
    """OpenVINO's door to its devices, one for the process."""
    return _openvino().Core()


def _openvino() -> Any:
    if not is_installed():
        raise DeviceError(
            "device 'openvino' needs OpenVINO's own package on this CPU, for ONNX Runtime's plugin "
            f"leaves out all but Intel's: {INSTALL}, or use device 'cpu'"
        )
    try:
        return importlib.import_module(_PACKAGE)
    except (ImportError, OSError) as error:
        raise DeviceError(
            f"OpenVINO's package does not load on {platform.system()} on {platform.machine()}: "
            f"{first_line(error)}. Reinstall it with {INSTALL} --force-reinstall, or use device "
            "'cpu'"
        ) from error


def _said(error: Exception) -> str:
    """What OpenVINO's message comes to."""
    lines = [line for line in str(error).splitlines() if not line.startswith(_HEADINGS)]
    return first_line(RuntimeError("\n".join(lines)))  # what OpenVINO raises


class Port(NamedTuple):
    """An input or output, in the words that ONNX Runtime has for it."""

    name: str
    type: str
    shape: tuple[int, ...]


class NativeSession:
    """A compiled network that is called as a session of ONNX Runtime is.

    memory : what the network may lie in, which must live as long.
    """

    def __init__(self, network: Any, memory: object = None) -> None:
        self._network = network
        self._memory = memory
        self._request = network.create_infer_request()

    def get_inputs(self) -> list[Port]:
        """What it takes."""
        return [_port(each) for each in self._network.inputs]

    def get_outputs(self) -> list[Port]:
        """What it gives."""
        return [_port(each) for each in self._network.outputs]

    def run(
        self, names: Sequence[str], inputs: Mapping[str, NDArray[np.generic]]
    ) -> list[NDArray[np.generic]]:
        """Compute the named outputs; the arrays are the caller's."""
        self._request.infer(dict(inputs), share_inputs=True)  # read where they are
        return [self._request.get_tensor(name).data.copy() for name in names]


def _port(port: Any) -> Port:
    """Describe one; where OpenVINO knows it by several names, its node has the graph's own."""
    own = port.node.friendly_name
    name = own if own in port.names else port.any_name
    shape = tuple(port.shape) if port.partial_shape.is_static else ()
    return Port(name, port.element_type.to_dtype().name, shape)


@dataclass(frozen=True)
class NativeCompiler:
    """OpenVINO's CPU, behind its ``core``."""

    core: Any
    arithmetic: Arithmetic
    settings: Mapping[str, str]
    pooled: bool = False  # OpenVINO keeps its memory to itself

    def compile(self, path: Path, folder: Path | None = None) -> NativeSession:
        """Compile the graph at ``path``; leave in ``folder`` what ``load`` needs."""
        check_locations(path)
        try:
            network = self.core.compile_model(str(path), _DEVICE, dict(self.settings))
        except Exception as error:
            raise EngineError(f"{path} does not load in OpenVINO: {_said(error)}") from error
        if folder is not None:
            try:
                (folder / _FILE).write_bytes(network.export_model().getbuffer())
            except OSError as error:
                raise EngineError(f"OpenVINO's work on {path} cannot be kept: {error}") from error
        return NativeSession(network)

    def load(self, folder: Path) -> NativeSession:
        """Load what was compiled before."""
        try:
            mapped = np.memmap(folder / _FILE, np.uint8, mode="c")  # OpenVINO wants it writeable
            blob = _openvino().Tensor(mapped, shared_memory=True)
            network = self.core.import_model(blob, _DEVICE, dict(self.settings))
        except Exception as error:
            raise EngineError(f"{folder} does not load in OpenVINO: {_said(error)}") from error
        return NativeSession(network, blob)
