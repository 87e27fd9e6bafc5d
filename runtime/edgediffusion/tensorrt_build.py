"""Build an engine of TensorRT, or of TensorRT for RTX, from a graph of a bundle.

Networks are strongly typed: what a graph says in float16 is computed in float16, and nothing else
is. The weights keep the names of their parameters, by which a refit finds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from edgediffusion.errors import EngineError, RequestError
from edgediffusion.external_data import check_locations
from edgediffusion.tensorrt_library import message_log
from edgediffusion.tensorrt_progress import stopped_by_ctrl_c
from edgediffusion.tensorrt_refit import strip_weights

_NO_CAPABILITY: Final = ("NONE", "CURRENT")


@dataclass(frozen=True)
class Plan:
    """A built engine as bytes, and what the build measured, for the next one to start from."""

    data: memoryview
    timing_cache: bytes = b""


def compute_capabilities(trt: ModuleType) -> tuple[str, ...]:
    """Return the kinds of GPU that ``trt`` builds for ahead of time, like ``8.9``, ascending."""
    names = [name for name in trt.ComputeCapability.__members__ if name not in _NO_CAPABILITY]
    numbers = sorted(int(name.removeprefix("SM")) for name in names)
    return tuple(f"{number // 10}.{number % 10}" for number in numbers)


def check_capabilities(trt: ModuleType, wanted: Sequence[str]) -> None:
    """Raise RequestError for a kind of GPU that ``trt`` does not build for ahead of time."""
    known = compute_capabilities(trt)
    for capability in wanted:
        if capability not in known:
            raise RequestError(
                f"TensorRT for RTX {trt.__version__} builds nothing for compute capability "
                f"{capability!r}, only for {', '.join(known)}. Leave it out; such a GPU runs the "
                "bundle with device 'tensorrt' or 'cuda'"
            )


def build_plan(
    trt: ModuleType,
    graph: Path,
    *,
    capabilities: Sequence[str] = (),
    timing_cache: bytes | None = None,
    stripped: bool = False,
) -> Plan:
    """Build the engine of the ONNX file at ``graph``.

    capabilities : build ahead of time for these kinds of GPU (TensorRT for RTX); empty builds for
        the GPU at hand.
    timing_cache : what an earlier build measured, or nothing yet; None keeps no measurements.
    stripped : leave the weights out of the plan; `Refit` puts them back.

    Raises EngineError with the library's own words, UnsafePath for a graph that reaches out of its
    folder. Ctrl-C stops the build.
    """
    check_locations(graph)
    log = message_log(trt)
    builder = _start(trt, log)
    network, parser = parse(trt, builder, graph, log)
    config = builder.create_builder_config()
    _set_capabilities(trt, config, capabilities)
    if timing_cache is not None:
        _set_timing_cache(config, timing_cache)
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 keeps its precision
    if stripped:
        strip_weights(trt, config)
    with stopped_by_ctrl_c(trt, config):
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{graph} does not build in {trt.__name__}: {log.why()}")
    del parser  # the network uses its weights until here
    measured = config.get_timing_cache() if timing_cache is not None else None
    return Plan(
        memoryview(plan).cast("B"), bytes(measured.serialize()) if measured is not None else b""
    )


def _start(trt: ModuleType, log: Any) -> Any:
    try:
        return trt.Builder(log)
    except TypeError as error:  # pybind11's way to say that the library gave no builder
        raise EngineError(
            f"{trt.__name__} {trt.__version__} does not start: {log.why()}. Does nvidia-smi work, "
            "and is the driver as new as the library needs it?"
        ) from error


def parse(trt: ModuleType, builder: Any, graph: Path, log: Any) -> tuple[Any, Any]:
    """Read an ONNX file into a strongly typed network; the parser owns the network's weights.

    Raises EngineError with the parser's own words.
    """
    flags = trt.NetworkDefinitionCreationFlag.__members__
    typed = flags.get("STRONGLY_TYPED")  # a later version may know no other networks
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        faults = [f"{error.node_operator()}: {error.desc()}" for error in errors]
        raise EngineError(
            f"{graph} is not a graph that {trt.__name__} {trt.__version__} reads: "
            f"{'; '.join(faults) or log.why()}"
        )
    return network, parser


def _set_capabilities(trt: ModuleType, config: Any, capabilities: Sequence[str]) -> None:
    if not capabilities:
        return
    check_capabilities(trt, capabilities)
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        name = f"SM{capability.replace('.', '')}"
        config.set_compute_capability(trt.ComputeCapability.__members__[name], index)


def _set_timing_cache(config: Any, content: bytes) -> None:
    """Start from what is known; measurements of another GPU or version are left aside."""
    if not config.set_timing_cache(config.create_timing_cache(content), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
