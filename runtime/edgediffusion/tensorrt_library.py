"""The two Python modules of TensorRT: which there are, how to get them, and what they say.

``tensorrt`` (10 and later) builds its engines on the GPU that runs them. ``tensorrt_rtx``, TensorRT
for RTX, builds them on any machine, for kinds of GPU; the rest is compiled where they run. As far
as edgediffusion uses them they have one interface, so the code takes the module as a parameter.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from edgediffusion.errors import DeviceError
from edgediffusion.manifest import Manifest


@dataclass(frozen=True)
class Library:
    """One of the modules; ``device`` is what edgediffusion calls it, and the extra's name."""

    device: str
    module: str
    title: str

    @property
    def install(self) -> str:
        """The command that brings it."""
        return f'pip install "edgediffusion[{self.device}]"'

    @property
    def is_installed(self) -> bool:
        """Whether it is there, told without loading it."""
        return importlib.util.find_spec(self.module) is not None

    def load(self) -> ModuleType:
        """Import the module. Raises DeviceError where it is missing or does not load."""
        if not self.is_installed:
            raise DeviceError(
                f"device {self.device!r} needs {self.title}, which is not installed: {self.install}"
            )
        try:
            return importlib.import_module(self.module)
        except (ImportError, OSError) as error:
            raise DeviceError(
                f"{self.title} is installed but does not load: {error}. Reinstall it with "
                f"{self.install} --force-reinstall"
            ) from error


TENSORRT: Final = Library("tensorrt", "tensorrt", "TensorRT")
TENSORRT_RTX: Final = Library("tensorrt-rtx", "tensorrt_rtx", "TensorRT for RTX")


def promising(manifest: Manifest) -> list[tuple[str, str]]:
    """Return the devices to try first for a bundle, each with its reason; nothing is loaded.

    A GPU that is not there, or that an engine is not for, comes out when the first graph is opened.
    """
    graphs = [graph for each in manifest.components.values() for graph in each.graphs]
    found = []
    if any(graph.plans for graph in graphs) and TENSORRT_RTX.is_installed:
        found.append((TENSORRT_RTX.device, "the bundle has engines of TensorRT for RTX"))
    if manifest.precision == "fp16" and TENSORRT.is_installed:
        found.append((TENSORRT.device, "TensorRT is installed, and the bundle is for GPUs"))
    return found


def message_log(trt: ModuleType) -> Any:
    """Return a logger for ``trt`` that prints nothing and keeps the errors in ``.errors``."""

    class MessageLog(trt.ILogger):  # type: ignore[misc, name-defined]  # a class of either module
        """Keeps what the library says about its failures, for the message of our own error."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(" ".join(message.split()))

        def why(self) -> str:
            """The first failure since the last time, which the others follow from."""
            told = self.errors[0] if self.errors else "it gave no reason"
            self.errors.clear()
            return told

    return MessageLog()
