"""Engines of TensorRT without weights: every start takes them from the graph in the bundle.

A plan holds all weights, so each size and batch costs them again on disk. A stripped plan holds
only the kernels. It is built for exactly these weights (``REFIT_IDENTICAL``), so the kernels are
the same as with the weights inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from edgediffusion.errors import EngineError
from edgediffusion.external_data import check_locations
from edgediffusion.tensorrt_library import message_log


def strip_weights(trt: ModuleType, config: Any) -> None:
    """Let a build leave the weights out of its plan, to be put back as they were."""
    config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)


@dataclass(frozen=True)
class Refit:
    """Puts the weights of the ONNX file at ``graph`` into an engine that was built without."""

    trt: ModuleType
    graph: Path

    def context(self, engine: Any) -> Any:
        """Return an execution context of the engine, which is whole from now on.

        Raises EngineError with the library's own words where the weights are not the engine's,
        UnsafePath for a graph that reaches out of its folder.
        """
        check_locations(self.graph)
        log = message_log(self.trt)
        refitter = self.trt.Refitter(engine, log)
        parser = self.trt.OnnxParserRefitter(refitter, log)
        if not (parser.refit_from_file(str(self.graph)) and refitter.refit_cuda_engine()):
            raise EngineError(f"{self.graph} does not fill its engine with weights: {log.why()}")
        return engine.create_execution_context()
