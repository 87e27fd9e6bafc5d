"""The CPU backend: ONNX Runtime's CPU provider, and nothing but it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgediffusion.engine import EngineOptions
from edgediffusion.errors import EngineError
from edgediffusion.external_data import check_locations
from edgediffusion.manifest import GraphSpec

_PROVIDER: Final = "CPUExecutionProvider"
_DTYPES: Final = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
}
_ERRORS_ONLY: Final = 3


class OrtBackend:
    """A session on the CPU provider."""

    def __init__(self, session: ort.InferenceSession, spec: GraphSpec) -> None:
        self._session = session
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._file = spec.file

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Compute all outputs. Raises EngineError with ONNX Runtime's own words."""
        try:
            outputs: list[NDArray[np.generic]] = self._session.run(self._outputs, dict(inputs))
        except Exception as error:
            raise EngineError(
                f"{self._file} failed in ONNX Runtime: {_first_line(error)}"
            ) from error
        return outputs

    def close(self) -> None:
        """Drop the session, which frees its memory."""
        del self._session


def open_backend(spec: GraphSpec, path: Path, options: EngineOptions) -> OrtBackend:
    """Load the graph at ``path``; raises EngineError when it fails or is not what ``spec`` says."""
    check_locations(path)
    try:
        session = ort.InferenceSession(
            str(path), sess_options=session_options(options), providers=[_PROVIDER]
        )
    except Exception as error:
        raise EngineError(f"{path} does not load in ONNX Runtime: {_first_line(error)}") from error
    faults = _signature_faults(session, spec)
    if faults:
        raise EngineError(
            f"{path} is not the graph that the manifest describes:\n  " + "\n  ".join(faults)
        )
    return OrtBackend(session, spec)


def session_options(options: EngineOptions) -> ort.SessionOptions:
    """Return the session options of the CPU provider.

    ``session.set_denormal_as_zero`` is left out on purpose: ONNX Runtime sets it on the calling
    thread, and the host program's own floating point would flush denormals from then on.
    """
    chosen = ort.SessionOptions()
    chosen.intra_op_num_threads = options.threads
    chosen.log_severity_level = _ERRORS_ONLY
    chosen.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.spin)))
    return chosen


def _signature_faults(session: ort.InferenceSession, spec: GraphSpec) -> list[str]:
    found = [*session.get_inputs(), *session.get_outputs()]
    got = [(node.name, _DTYPES.get(node.type, node.type), tuple(node.shape)) for node in found]
    wanted = [(t.name, str(t.dtype), t.shape) for t in (*spec.inputs, *spec.outputs)]
    if sorted(got, key=repr) == sorted(wanted, key=repr):
        return []
    return [f"graph has {_say(got)}", f"manifest says {_say(wanted)}"]


def _say(tensors: list[tuple[str, str, tuple[Any, ...]]]) -> str:
    return ", ".join(f"{name} {dtype} {shape}" for name, dtype, shape in tensors)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
