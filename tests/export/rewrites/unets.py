"""The tiny checkpoint's UNet as it is traced, to rewrite as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from edgediffusion_export.graphs import NETWORKS, graph_specs
from edgediffusion_export.onnx_export import export_graph
from edgediffusion_export.source import open_checkpoint


@dataclass(frozen=True)
class Unet:
    """A traced UNet with inputs for it."""

    model: ir.Model
    inputs: dict[str, Any]

    def run(self) -> Any:
        """The prediction of the model as it is now."""
        data = ir.serde.serialize_model(self.model).SerializeToString()
        session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
        return session.run(None, self.inputs)[0]


def traced_unet(checkpoint: Path, batch: int) -> Unet:
    """Trace the plain graph of that batch."""
    source = open_checkpoint(str(checkpoint), None)
    network = next(each for each in NETWORKS if each.name == "unet")
    sizes = [source.architecture.default_size]
    spec = next(graph_specs(network, source.architecture, sizes, [batch], "fp32"))
    draws = np.random.default_rng(0)
    inputs = {t.name: draws.standard_normal(t.shape).astype(t.dtype) for t in spec.inputs}
    inputs["timestep"][:] = 481
    return Unet(export_graph(network, spec, source.load(network.part)), inputs)
