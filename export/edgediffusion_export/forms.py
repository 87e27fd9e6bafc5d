"""The further files of a graph: cut into parts, and rewritten for the CPUs that gain by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import onnx
import onnx_ir as ir

from edgediffusion.errors import ParityError
from edgediffusion.manifest import ANY_UNIT, GATES, GoldenCase, GraphSpec, Parity, Rewritten
from edgediffusion_export.golden import Golden
from edgediffusion_export.graphs import Network
from edgediffusion_export.job import Job
from edgediffusion_export.onnx_export import serialized
from edgediffusion_export.parity import Outputs, measure
from edgediffusion_export.rewrites import FLOAT32, HALVES, areas_for, rewrite
from edgediffusion_export.splitting import split, tensor_spec

HALF_OF_THE_GATE: Final = GATES["bf16"] / 2
"""What a rewrite may lose by rounding to bf16; the rest is for what bf16 rounds anyway."""


def write_forms(job: Job, network: Network, spec: GraphSpec, model: ir.Model) -> GraphSpec:
    """Write a graph and the forms of it that were asked for."""
    plain = serialized(model)
    job.staging.write(spec.file, [plain])
    spec = _write_parts(job, network, spec, model)
    if spec.precision != "fp32":
        return spec
    fp32 = _rewrite(job, network, spec, plain, "fp32", FLOAT32)
    bf16: dict[str, Rewritten] = {}
    for unit, names in HALVES.items():
        form = _rewrite(job, network, spec, plain, f"bf16-{unit}", names, halves=unit != ANY_UNIT)
        if form and any(form.rewrites == other.rewrites for other in bf16.values()):
            job.staging.remove(form.file)  # nothing of it is for this unit alone
        elif form:
            bf16[unit] = form
    return msgspec.structs.replace(spec, fp32=fp32, bf16=bf16)


def _write_parts(job: Job, network: Network, spec: GraphSpec, model: ir.Model) -> GraphSpec:
    count = job.options.split if network.name == "unet" else 1
    parts = split(model, spec, count) if count > 1 else []
    for part, graph in parts:
        job.staging.write(part.file, [serialized(graph)])
    return msgspec.structs.replace(spec, parts=tuple(part for part, _ in parts))


def _rewrite(
    job: Job,
    network: Network,
    spec: GraphSpec,
    plain: bytes,
    name: str,
    rewrites: Sequence[str],
    halves: bool = False,
) -> Rewritten | None:
    """Write a form of a graph; None where no rewrite of it fired."""
    model = _parsed(plain)
    asked = [each for each in rewrites if each in job.options.rewrites]
    counts = rewrite(model, asked, areas_for(network.name, halves), halves)
    if not counts:
        return None
    file = f"{spec.file.removesuffix('.onnx')}.{name}.onnx"
    hidden = model.graph.outputs[len(spec.outputs) :]
    job.staging.write(file, [serialized(model)])
    return Rewritten(file, counts, tuple(map(tensor_spec, hidden)))


def _parsed(data: bytes) -> ir.Model:
    return ir.serde.deserialize_model(onnx.ModelProto.FromString(data))


def measure_forms(
    job: Job, spec: GraphSpec, cases: list[GoldenCase], golden: Golden, wanted: Sequence[Outputs]
) -> GraphSpec:
    """Hold all forms of a graph to their gates; return it with what was measured.

    A form that is too coarse in bf16 is left out. Raises ParityError for the others.
    """

    def run(form: GraphSpec, gate: float | None = None) -> Parity:
        return measure(form, job.staging.folder, cases, golden.tensors, wanted, gate)

    parity = max(map(run, _in_float32(spec)), key=lambda found: found.l2)
    bf16 = {}
    for unit, form in spec.bf16.items():
        if not _rounds(form):
            bf16[unit] = form
            continue
        stand_in = _for_any_cpu(job, form)
        try:
            found = run(_as_fp32(spec, stand_in), HALF_OF_THE_GATE)
            bf16[unit] = msgspec.structs.replace(form, parity=found)
        except ParityError:
            job.staging.remove(form.file)
        finally:
            job.staging.remove(stand_in.file)
    return msgspec.structs.replace(spec, parity=parity, bf16=bf16)


def _in_float32(spec: GraphSpec) -> Iterator[GraphSpec]:
    """The forms that compute in float32, each as the one that the device ``cpu`` opens."""
    yield spec
    if spec.fp32:
        yield msgspec.structs.replace(spec, fp32=None, parts=())
    yield from (_as_fp32(spec, form) for form in spec.bf16.values() if not _rounds(form))


def _rounds(form: Rewritten) -> bool:
    """Whether a form has products of bf16 whatever runs it."""
    return "winograd" in form.rewrites


def _as_fp32(spec: GraphSpec, form: Rewritten) -> GraphSpec:
    return msgspec.structs.replace(spec, fp32=form, parts=())


def _for_any_cpu(job: Job, form: Rewritten) -> Rewritten:
    """Write a form once more with products in float32 of numbers that are rounded to bf16.

    ONNX Runtime has no kernel for products of bf16 on CPUs, and the export may run on any.
    """
    model = _parsed((job.staging.folder / form.file).read_bytes())
    for node in list(model.graph):
        if node.op_type != "MatMul" or node.outputs[0].dtype != ir.DataType.BFLOAT16:
            continue
        for index, value in enumerate(node.inputs):
            wide = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
            wide.outputs[0].name = f"{node.outputs[0].name}.wide.{index}"
            model.graph.insert_before(node, wide)
            node.replace_input_with(index, wide.outputs[0])
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    file = form.file.replace(".onnx", ".stand-in.onnx")
    job.staging.write(file, [serialized(model)])
    return msgspec.structs.replace(form, file=file)
