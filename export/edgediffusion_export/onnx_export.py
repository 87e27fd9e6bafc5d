"""One torch module to one static ONNX graph, deterministic and free of the exporting machine."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from edgediffusion.manifest import GraphSpec
from edgediffusion_export.graphs import Network, Traced
from edgediffusion_export.mixed import compute_in_float32
from edgediffusion_export.quiet import quiet_onnx
from edgediffusion_export.shared_rows import remove_idle, share_rows

OPSET: Final = 20
"""Group norm stays InstanceNormalization, which every CPU provider runs fast; GELU is one node."""

TRACED_PREFIX: Final = "model."
"""What ``Traced`` puts before the names of the parameters."""


def serialized(model: ir.Model) -> bytes:
    """The bytes of a graph's file, the same for the same graph."""
    data: bytes = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    return data


def export_graph(
    network: Network,
    spec: GraphSpec,
    module: torch.nn.Module,
    float32_layers: Collection[str] = (),
) -> ir.Model:
    """Trace ``module`` at the shapes of ``spec``.

    float32_layers : those of a half module's layers that compute in float32 all the same.

    The exporter writes stack traces with absolute paths into the metadata; they are removed, so
    that equal inputs give equal bytes and nothing of the machine leaks.
    """
    model = _trace(network, spec, module)
    if spec.batch > 1:
        share_rows(model, _trace(network, _of_one_row(spec), module))
    if float32_layers:
        compute_in_float32(model, _all_names(module, float32_layers), TRACED_PREFIX)
    ClearMetadataAndDocStringPass()(model)
    return model


def _of_one_row(spec: GraphSpec) -> GraphSpec:
    """The same graph at batch 1."""
    inputs = tuple(
        msgspec.structs.replace(t, shape=(1, *t.shape[1:])) if t.shape[0] == spec.batch else t
        for t in spec.inputs
    )
    return msgspec.structs.replace(spec, batch=1, inputs=inputs)


def _trace(network: Network, spec: GraphSpec, module: torch.nn.Module) -> ir.Model:
    inputs = tuple(torch.zeros(t.shape, dtype=getattr(torch, t.dtype)) for t in spec.inputs)
    with quiet_onnx(), torch.no_grad():
        program = torch.onnx.export(
            Traced(network, module, spec.variant).eval(),
            inputs,
            input_names=[t.name for t in spec.inputs],
            output_names=[t.name for t in spec.outputs],
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # it is None only with a file name
    model: ir.Model = program.model
    remove_idle(model.graph)
    return model


def _all_names(module: torch.nn.Module, layers: Collection[str]) -> set[str]:
    """The given modules by all of their names: the tracer calls one that is shared by any."""
    known = dict(module.named_modules(remove_duplicate=False))
    wanted = [known[layer] for layer in layers]
    return {name for name, child in known.items() if any(child is each for each in wanted)}
