"""The CPU backend: ONNX Runtime's CPU provider, and nothing but it; and what backends share."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgediffusion.cpu import bf16_unit, computes_int8
from edgediffusion.engine import Arithmetic, EngineOptions
from edgediffusion.engine_cache import engine_cache, load_or_build, nothing
from edgediffusion.errors import EngineError
from edgediffusion.external_data import check_locations
from edgediffusion.fingerprint import engine_facts
from edgediffusion.graph_bytes import half_weights
from edgediffusion.manifest import ANY_UNIT, GraphSpec, Rewritten, TensorSpec

_PROVIDER: Final = "CPUExecutionProvider"
_DTYPES: Final = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
}
_ERRORS_ONLY: Final = 3
_FILE: Final = "prepared.onnx"
_PREPARED: Final = {
    "optimized_model_external_initializers_file_name": "prepared.bin",
    "optimized_model_external_initializers_min_size_in_bytes": "1024",
}
"""Write the optimised graph with its weights apart."""
_PACKED: Final = {"save_external_prepacked_constant_initializers": "1"}
"""Write the weights as the kernels want them, too."""
_WIDENED_APART: Final = 256 << 20
"""From so many bytes of float16 weights on, they are made float32 in a pass of their own.

In the one that also lays them out for the kernels, all three forms would be in memory at a time.
"""
_PACKS_SINCE: Final = (1, 32)
"""ONNX Runtime 1.31 crashes when it runs a graph with packed weights that it wrote itself."""
SPINNING: Final[Mapping[str, str]] = {
    "intra_op.allow_spinning": "1",
    "intra_op.spin_duration_us": "50",
    "force_spinning_stop": "1",
}
"""Threads that wait for work inside a call look out for it a moment before they sleep.

Waking a thread takes about as long as a small operator: the demo's UNet takes 0.75 of the time that
it takes without (benchmarks/spinning.py). Between calls they sleep at once, so that a program that
waits burns no core.
"""
_EXACT_INT8: Final = "session.x64quantprecision"
"""For x86-64 CPUs without VNNI: int8 kernels that are slower, and whose sums never overflow."""
_RESTS_AFTER_S: Final = 0.1
"""Emptying a pool takes half a millisecond and more: not worth it where runs are as short."""
_PLACE: Final = re.compile(r"(Exception from|Check '.*' failed at) \S+:\d+:$")


class Session(Protocol):
    """A loaded graph, as ONNX Runtime's InferenceSession has it."""

    def get_inputs(self) -> Sequence[Any]:
        """What it takes, each with name, type and shape."""

    def get_outputs(self) -> Sequence[Any]:
        """What it gives, likewise."""

    def run(self, names: Any, inputs: Any, options: Any = None, /) -> Any:
        """Compute the named outputs."""


class OrtBackend:
    """A session of ONNX Runtime, or of what is called like one.

    pooled : whether it works in a pool of ONNX Runtime's, which keeps what a run has used.
    on_close : called when its memory is free.
    """

    def __init__(
        self,
        session: Session,
        spec: GraphSpec,
        compiler: Compiler,
        on_close: Callable[[], None] = nothing,
    ) -> None:
        self.arithmetic = compiler.arithmetic
        self._pooled = compiler.pooled
        self._session = session
        self._spec = spec
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._on_close = on_close
        self._spent_s = 0.0

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Compute all outputs. Raises EngineError with ONNX Runtime's own words."""
        start = time.perf_counter()
        try:
            outputs: list[NDArray[np.generic]] = self._session.run(self._outputs, dict(inputs))
        except Exception as error:
            raise EngineError(
                f"{self._spec.file} failed in ONNX Runtime: {first_line(error)}"
            ) from error
        self._spent_s = time.perf_counter() - start
        return outputs

    def rest(self) -> None:
        """Empty the pool, if the last run was long enough to have filled one of any size.

        ONNX Runtime does so at the end of a run only: this one ends before its first operator.
        """
        if not self._pooled or self._spent_s < _RESTS_AFTER_S:
            return
        self._spent_s = 0.0
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        options.terminate = True
        empty = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in self._spec.inputs}
        with suppress(ort.capi.onnxruntime_pybind11_state.Fail):  # that it was told to end
            self._session.run(self._outputs, empty, options)

    def close(self) -> None:
        """Drop the session, which frees its memory."""
        del self._session
        self._on_close()


class Compiler(Protocol):
    """What turns a graph into a session, and keeps the work for the next time."""

    @property
    def arithmetic(self) -> Arithmetic:
        """The numbers that its sessions compute in."""

    @property
    def pooled(self) -> bool:
        """Whether its sessions work in a pool of ONNX Runtime's on the CPU."""

    @property
    def settings(self) -> Mapping[str, str]:
        """What else decides over its work: no two settings share it."""

    def compile(self, path: Path, folder: Path | None = None) -> Session:
        """Open the graph at ``path``; leave in ``folder`` what ``load`` needs."""

    def load(self, folder: Path) -> Session:
        """Open what ``compile`` left in ``folder``."""


@dataclass(frozen=True)
class Preparer:
    """ONNX Runtime's CPU provider.

    What it leaves is the graph as it was optimised for this CPU, with the weights as its kernels
    want them, in a file that the next session maps instead of copying.
    """

    options: EngineOptions
    arithmetic: Arithmetic
    settings: Mapping[str, str] = field(default_factory=lambda: prepared_entries(ort.__version__))

    @property
    def pooled(self) -> bool:
        """Where memory need not be spared, it comes from a pool, which is faster."""
        return not self.options.lean

    def compile(self, path: Path, folder: Path | None = None) -> ort.InferenceSession:
        """Optimise the graph at ``path``. Raises EngineError or UnsafePath."""
        check_locations(path)
        if folder is None:
            return self._open(path, session_options(self.options))
        if not self._widens_apart(path):
            return self._open(path, self._keeping(folder, self.settings))
        widened = folder / "widened"
        widened.mkdir()
        self._open(self._widen(path, widened), self._keeping(folder, self.settings))
        shutil.rmtree(widened)  # after the session that mapped it
        return self.load(folder)

    def _widens_apart(self, path: Path) -> bool:
        """Whether a graph's weights are made float32 in a pass of their own.

        Not on Windows, where a folder with a file that is mapped could not be moved into place.
        """
        if self.arithmetic == "fp16" or sys.platform == "win32":
            return False
        return half_weights(path) >= _WIDENED_APART

    def _widen(self, path: Path, folder: Path) -> Path:
        """Write the graph with its weights in float32, and do nothing else to it."""
        options = self._keeping(folder, _PREPARED)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.disable_prepacking", "1")
        self._open(path, options)
        return folder / _FILE

    def _keeping(self, folder: Path, entries: Mapping[str, str]) -> ort.SessionOptions:
        """Session options that leave the optimised graph in ``folder``."""
        options = session_options(self.options)
        options.optimized_model_filepath = str(folder / _FILE)
        for name, value in entries.items():
            options.add_session_config_entry(f"session.{name}", value)
        return options

    def load(self, folder: Path) -> ort.InferenceSession:
        """Open a graph that is optimised already."""
        options = session_options(self.options)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return self._open(folder / _FILE, options)

    def _open(self, path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
        try:
            return ort.InferenceSession(str(path), sess_options=options, providers=[_PROVIDER])
        except Exception as error:
            raise EngineError(
                f"{path} does not load in ONNX Runtime: {first_line(error)}"
            ) from error


def prepared_entries(version: str) -> dict[str, str]:
    """Return with which ``session.`` entries that version of ONNX Runtime keeps its work."""
    major, minor = map(int, version.split(".")[:2])
    return _PREPARED | (_PACKED if (major, minor) >= _PACKS_SINCE else {})


def open_backend(
    spec: GraphSpec, path: Path, options: EngineOptions, content: str | None = None
) -> OrtBackend:
    """Load the graph at ``path``; raises EngineError when it fails or is not what ``spec`` says."""
    compiler = Preparer(options, spec.precision)
    path = cpu_path(spec, path, compiler.arithmetic)
    return open_with(compiler, "cpu", spec, path, options, content)


def cpu_path(spec: GraphSpec, path: Path, arithmetic: Arithmetic) -> Path:
    """Return the file of the graph at ``path`` for a CPU that computes in ``arithmetic``."""
    form = cpu_form(spec, arithmetic)
    return path.parents[1] / form.file if form else path


def cpu_form(spec: GraphSpec, arithmetic: Arithmetic) -> Rewritten | None:
    """Return the form of a graph for a CPU that computes in ``arithmetic``; None: the plain one."""
    if arithmetic == "fp32":
        return spec.fp32
    if arithmetic != "bf16":
        return None
    return spec.bf16.get(bf16_unit() or ANY_UNIT, spec.bf16.get(ANY_UNIT))


def hidden_outputs(spec: GraphSpec, path: Path) -> tuple[TensorSpec, ...]:
    """Return what the file at ``path`` gives beside the outputs of the graph that it is one of."""
    forms = (spec.fp32, *spec.bf16.values())
    mine = [form for form in forms if form and Path(form.file).name == path.name]
    return mine[0].hidden if mine else ()


def open_with(
    compiler: Compiler,
    device: str,
    spec: GraphSpec,
    path: Path,
    options: EngineOptions,
    content: str | None,
) -> OrtBackend:
    """Open a graph, from the engine cache where its ``content`` is known and was met before.

    Raises EngineError when it fails or is not what ``spec`` says.
    """
    if content is None:
        session, on_close = compiler.compile(path), nothing
    else:
        facts = engine_facts(content, device, compiler.arithmetic, options)
        session, on_close = load_or_build(
            engine_cache(),
            facts | dict(compiler.settings),
            label=f"{path.parents[1].name}/{spec.file}",
            load=compiler.load,
            build=partial(compiler.compile, path),
        )
    backend = OrtBackend(session, spec, compiler, on_close)
    try:
        check_signature(session, spec, path, hidden_outputs(spec, path))
    except EngineError:
        backend.close()
        raise
    return backend


def libraries() -> dict[str, str]:
    """Return the libraries that compute here, with their versions."""
    return {"onnxruntime": ort.__version__}


def session_options(options: EngineOptions) -> ort.SessionOptions:
    """Return the session options of the CPU provider.

    ``session.set_denormal_as_zero`` is left out on purpose: ONNX Runtime sets it on the calling
    thread, and the host program's own floating point would flush denormals from then on.

    The memory pattern is off: from the second run on it takes all values from one block, beside
    the pool that the first run filled. Stable Diffusion 1.5 took 2.3 GB more for it, and its step
    was 2 to 3 % slower.
    """
    chosen = ort.SessionOptions()
    chosen.intra_op_num_threads = options.threads
    chosen.enable_cpu_mem_arena = not options.lean
    chosen.enable_mem_pattern = False
    chosen.log_severity_level = _ERRORS_ONLY
    for name, value in SPINNING.items():
        chosen.add_session_config_entry(f"session.{name}", value)
    if not computes_int8():
        chosen.add_session_config_entry(_EXACT_INT8, "1")
    return chosen


def check_signature(
    session: Session, spec: GraphSpec, path: Path, hidden: Sequence[TensorSpec] = ()
) -> None:
    """Raise EngineError if a session's inputs and outputs are not those of ``spec`` and hidden."""
    found = [*session.get_inputs(), *session.get_outputs()]
    got = [(node.name, _DTYPES.get(node.type, node.type), tuple(node.shape)) for node in found]
    wanted = [(t.name, str(t.dtype), t.shape) for t in (*spec.inputs, *spec.outputs, *hidden)]
    if sorted(got, key=repr) != sorted(wanted, key=repr):
        raise EngineError(
            f"{path} is not the graph that the manifest describes:\n  graph has {_say(got)}\n"
            f"  manifest says {_say(wanted)}"
        )


def _say(tensors: list[tuple[str, str, tuple[Any, ...]]]) -> str:
    return ", ".join(f"{name} {dtype} {shape}" for name, dtype, shape in tensors)


def first_line(error: Exception) -> str:
    """Return the first line of a library's message that is more than a place in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not _PLACE.search(line)]
    return (telling or [line for line in lines if line] or [type(error).__name__])[0]
