"""As much of TensorRT's Python interface as edgediffusion uses, on a GPU made of host memory.

A plan is a header and the ONNX model with its weights; what runs it is ONNX Runtime, so outputs are
real. The header says which module and version built the plan and for which kinds of GPU, and is
checked as strictly as the real ones check theirs.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from enum import IntEnum, IntFlag
from importlib.machinery import ModuleSpec
from math import prod
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from tests.runtime.fake_cuda import FakeGpu

HEADER = 256
FLAGS = ("TF32", "STRIP_PLAN", "REFIT_IDENTICAL")
CAPABILITIES = ("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120")
NETWORKS = {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
"""What kinds of network TensorRT 10 and 11 know; a later one may type all strongly, unasked."""
_TYPES = {1: "float32", 7: "int64", 10: "float16"}


class Validity(IntEnum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class Diagnostics(IntFlag):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    OLD_CUDA_RUNTIME = 8
    INSUFFICIENT_GPU_MEMORY = 16
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


class FakeTensorRt:
    """What a test sets up and looks at; ``module()`` is what edgediffusion imports."""

    def __init__(self, name: str, gpu: FakeGpu, version: str = "11.4.0") -> None:
        self.name, self.gpu, self.version = name, gpu, version
        self.builds: list[Path] = []
        self.timing_caches: list[bytes] = []
        self.compiled = self.refits = 0
        self.device_memory = 1 << 20
        self.diagnostics = Diagnostics(0)
        self.networks = dict(NETWORKS)
        self.while_building: Callable[[], None] = lambda: None
        self.is_capturable = True
        self.build_error = ""
        self.fails_to_run = False
        self.gives_contexts = True
        self.refusals = 0

    def plan(self, graph: Path, capabilities: tuple[str, ...], stripped: bool = False) -> bytes:
        """A plan of an ONNX file; a stripped one has no weights."""
        says = {"name": self.name, "version": self.version, "capabilities": capabilities}
        header = json.dumps(says | {"stripped": stripped}).encode().ljust(HEADER)
        model = onnx.load(graph, load_external_data=not stripped)
        return header + bytes(model.SerializeToString())

    def module(self) -> ModuleType:
        made: Any = ModuleType(self.name)
        made.__spec__ = ModuleSpec(self.name, None)
        made.__version__ = self.version
        made.ILogger = type("ILogger", (), {"ERROR": 1, "WARNING": 2})
        made.IProgressMonitor = type("IProgressMonitor", (), {})
        made.NetworkDefinitionCreationFlag = SimpleNamespace(__members__=self.networks)
        made.ComputeCapability = SimpleNamespace(__members__={n: n for n in CAPABILITIES})
        made.BuilderFlag = SimpleNamespace(**{name: name for name in FLAGS})
        made.EngineValidity, made.EngineInvalidityDiagnostics = Validity, Diagnostics
        made.nptype = np.dtype
        made.OnnxParser = Parser
        made.OnnxParserRefitter, made.Refitter = OnnxParserRefitter, Refitter
        made.Builder = lambda log: Builder(self, log)
        made.Runtime = lambda log: Runtime(self, log)
        return made


class Parser:
    def __init__(self, network: Any, log: Any) -> None:
        self.network = network
        self.num_errors = 0

    def parse_from_file(self, path: str) -> bool:
        self.network.graph = Path(path)
        return True


class Builder:
    def __init__(self, fake: FakeTensorRt, log: Any) -> None:
        self.fake, self.log = fake, log

    def create_network(self, flags: int) -> Any:
        typed = self.fake.networks.get("STRONGLY_TYPED")
        assert flags == (0 if typed is None else 1 << typed), "not strongly typed, or no such flag"
        return SimpleNamespace()

    def create_builder_config(self) -> Any:
        return Config()

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        assert config.cleared == {"TF32"}
        assert config.flags in (set(), {"STRIP_PLAN", "REFIT_IDENTICAL"})
        self.fake.builds.append(network.graph)
        self.fake.timing_caches.append(config.known)
        self.fake.while_building()
        if self.fake.build_error:
            self.log.log(1, self.fake.build_error)
            return None
        if not config.progress_monitor.step_complete("building", 0):
            return None
        major, minor = self.fake.gpu.capability
        return self.fake.plan(network.graph, (f"{major}.{minor}",), bool(config.flags))


class Config:
    def __init__(self) -> None:
        self.cleared: set[str] = set()
        self.flags: set[str] = set()
        self.known = b""
        self.progress_monitor: Any = None

    def clear_flag(self, flag: str) -> None:
        self.cleared.add(flag)

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def create_timing_cache(self, content: bytes) -> bytes:
        return content

    def set_timing_cache(self, content: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.known = content
        return content != b"of another GPU"

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: b"timings after " + self.known)


class Runtime:
    engine_header_size = HEADER

    def __init__(self, fake: FakeTensorRt, log: Any) -> None:
        self.fake, self.log = fake, log

    def get_engine_validity(self, header: bytes) -> tuple[Validity, int]:
        assert len(header) == HEADER
        found = self.fake.diagnostics or self._diagnose(header)
        return (Validity.INVALID if found else Validity.VALID), int(found)

    def deserialize_cuda_engine(self, data: Any) -> Any:
        found = self._diagnose(bytes(data[:HEADER]))
        if self.fake.refusals:
            self.fake.refusals -= 1
            found = Diagnostics.MALFORMED_ENGINE
        if found:
            self.log.log(1, f"the plan is not for here:\n {found!r}")
            return None
        stripped = json.loads(bytes(data[:HEADER]))["stripped"]
        return Engine(self.fake, bytes(data[HEADER:]), self.log, stripped)

    def _diagnose(self, header: bytes) -> Diagnostics:
        try:
            says = json.loads(header)
        except ValueError:
            return Diagnostics.MALFORMED_ENGINE
        if (says["name"], says["version"]) != (self.fake.name, self.fake.version):
            return Diagnostics.VERSION_MISMATCH
        major, minor = self.fake.gpu.capability
        fits = f"{major}.{minor}" in says["capabilities"]
        return Diagnostics(0) if fits else Diagnostics.UNSUPPORTED_CC


class Engine:
    def __init__(self, fake: FakeTensorRt, model: bytes, log: Any, stripped: bool) -> None:
        self.fake, self.log = fake, log
        graph = onnx.load_from_string(model).graph
        self.weights = {each.name: tuple(each.dims) for each in graph.initializer}
        self.tensors = {
            each.name: (
                _TYPES[each.type.tensor_type.elem_type],
                tuple(side.dim_value for side in each.type.tensor_type.shape.dim),
            )
            for each in (*graph.input, *graph.output)
        }
        self.inputs = [each.name for each in graph.input]
        self.session: ort.InferenceSession | None = None if stripped else fill(model)
        self.num_io_tensors = len(self.tensors)
        self.device_memory_size_v2 = fake.device_memory

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> str:
        return self.tensors[name][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][1]

    def create_runtime_config(self) -> Any:
        return RuntimeConfig(self.fake)

    def create_execution_context(self, config: Any = None) -> Any:
        assert self.session is not None, "an engine without weights"
        if self.fake.gives_contexts:
            return Context(self, config)
        self.log.log(1, "out of something")
        return None


def fill(model: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"])


class Refitter:
    """Takes weights into an engine that was built without them."""

    def __init__(self, engine: Engine, log: Any) -> None:
        self.engine = engine
        self.given: bytes | None = None

    def refit_cuda_engine(self) -> bool:
        assert self.given is not None
        self.engine.session = fill(self.given)
        self.engine.fake.refits += 1
        return True


class OnnxParserRefitter:
    """Reads the weights of a graph for an engine of the same graph."""

    def __init__(self, refitter: Refitter, log: Any) -> None:
        self.refitter, self.log = refitter, log

    def refit_from_file(self, model: str) -> bool:
        read = onnx.load(model)
        weights = {each.name: tuple(each.dims) for each in read.graph.initializer}
        if weights != self.refitter.engine.weights:
            self.log.log(1, "weights are missing")
            return False
        self.refitter.given = read.SerializeToString()
        return True


class RuntimeConfig:
    """TensorRT for RTX: kernels are compiled at the first run, unless the cache has them."""

    def __init__(self, fake: FakeTensorRt) -> None:
        self.fake = fake
        self.content = b""

    def create_runtime_cache(self) -> Any:
        return self

    def set_runtime_cache(self, cache: Any) -> None:
        assert cache is self

    def deserialize(self, content: bytes) -> bool:
        self.content = content
        return content == b"kernels for " + self.fake.gpu.name.encode()

    def serialize(self) -> bytes:
        return self.content

    def compile(self) -> None:
        if not self.content:
            self.fake.compiled += 1
            self.content = b"kernels for " + self.fake.gpu.name.encode()


class Context:
    def __init__(self, engine: Engine, config: RuntimeConfig | None) -> None:
        self.engine, self.config = engine, config
        self.addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        fake = self.engine.fake
        if fake.fails_to_run:
            self.engine.log.log(1, "a kernel failed")
            return False
        if fake.gpu.capturing is not None and not fake.is_capturable:
            return False
        if self.config:
            self.config.compile()
        fake.gpu.put(self._run)
        return True

    def _run(self) -> None:
        arrays = {name: self._view(name) for name in self.engine.tensors}
        inputs = {name: arrays[name].copy() for name in self.engine.inputs}
        names = [name for name in arrays if name not in inputs]
        session = self.engine.session
        assert session is not None
        for name, out in zip(names, session.run(names, inputs), strict=True):
            arrays[name][...] = out

    def _view(self, name: str) -> Any:
        dtype, shape = self.engine.tensors[name]
        size = prod(shape) * np.dtype(dtype).itemsize
        block = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(block, dtype).reshape(shape)
