"""One network: measured with PyTorch, traced, packed, and proven by the runtime's own engine."""

from __future__ import annotations

import gc
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import torch
from safetensors.numpy import save

from edgediffusion.errors import ParityError
from edgediffusion.golden import golden_inputs, relative_l2
from edgediffusion.manifest import (
    DEEP,
    GATES,
    PLAIN,
    PROMPT,
    SHALLOW,
    TEXT_ENCODERS,
    ComponentSpec,
    GoldenCase,
    GraphSpec,
    Precision,
    StoredTensor,
)
from edgediffusion_export.architecture import Size
from edgediffusion_export.cuda_graph import fuse_for_cuda
from edgediffusion_export.cuda_proof import prove_fused
from edgediffusion_export.forms import measure_forms, write_forms
from edgediffusion_export.golden import (
    Golden,
    latent_scale,
    noise_cases,
    prompt_cases,
    text_cases,
    unet_cases,
)
from edgediffusion_export.graphs import NETWORKS_OF, Network
from edgediffusion_export.job import Job
from edgediffusion_export.latent_rgb import fit_latent_rgb
from edgediffusion_export.onnx_export import TRACED_PREFIX, export_graph, serialized
from edgediffusion_export.options import INT8, INT8_DYNAMIC
from edgediffusion_export.parity import Array, Outputs, reference, run_module
from edgediffusion_export.plans import write_plans
from edgediffusion_export.precision import Overflow, find_overflow
from edgediffusion_export.quantize.quantizer import Quantizer, prepare
from edgediffusion_export.weights import WeightStore, is_matrix

WEIGHTS_FILE: Final = "weights.safetensors"
GOLDEN_FILE: Final = "golden.safetensors"


@dataclass(frozen=True)
class Choice:
    """The arithmetic of a network's graphs.

    note : why it is not what was asked for.
    overflow : what its layers in float32 are, where the rest is fp16.
    """

    precision: Precision
    note: str | None = None
    overflow: Overflow | None = None

    @property
    def float32_layers(self) -> tuple[str, ...]:
        """The layers that compute in float32 among others that do not."""
        return tuple(self.overflow.peaks) if self.overflow else ()


class MixedPrecisionFailed(Exception):
    """Mixed precision missed its gate; says what to export instead."""

    def __init__(self, instead: Choice) -> None:
        super().__init__(instead)
        self.instead = instead


@dataclass
class Subject:
    """A graph with the inputs to measure it by and PyTorch's outputs for them.

    fused : the file of the same graph in the CUDA provider's operators, where there is one.
    """

    spec: GraphSpec
    cases: list[GoldenCase]
    wanted: list[Outputs]
    fused: str | None = None


def export_component(job: Job, network: Network) -> ComponentSpec:
    """Write one network's graphs, weights and golden vectors; raises ParityError.

    Where mixed precision misses its gate, all is done again with the network in float32.
    """
    done = job.done
    try:
        return _export_as(job, network)
    except MixedPrecisionFailed as failed:
        choice = failed.instead
    job.done = done
    job.staging.discard(network.name)
    gc.collect()
    return _export_as(job, network, choice)


def _export_as(job: Job, network: Network, choice: Choice | None = None) -> ComponentSpec:
    """Export in the arithmetic that was chosen, or choose; raises also MixedPrecisionFailed."""
    job.begin(f"{network.name}: loading")
    module = job.checkpoint.load(network.part)
    if network.name == "vae_encoder":
        job.latent_rgb = fit_latent_rgb(network, module, job.architecture)
    if network.name in TEXT_ENCODERS:
        table: torch.Tensor = module.get_input_embeddings().weight  # type: ignore[operator]
        job.embedding_scale = float(table.square().mean().sqrt())
    job.begin(f"{network.name}: computing references with PyTorch")
    golden = Golden()
    choice = choice or _choose_precision(job, network, module)
    precision, notes = choice.precision, [choice.note]
    subjects = _subjects(job, network, module, precision, golden)
    if network.name in TEXT_ENCODERS:
        check_prompt_states(network, *(subject.wanted for subject in subjects))
    if job.options.deepcache and network.name == "unet":
        check_deep_steps(network, module, subjects, golden)
    if job.options.attention_tiles > 1 and network.name == "unet":
        notes.append(_say_tiling(job, module, subjects[0], golden))
    store = store_precision(job, network.part, precision)
    if precision == "fp32" and store == "fp16":
        notes.append(_round_weights(network, module, subjects, golden))
    quantizer = prepare(job, network, module) if precision == "int8" else None
    if quantizer is not None:
        notes.append(quantizer.note())
    count = sum(parameter.numel() for parameter in _parameters(network, module).values())
    packed = module.half() if precision == "fp16" else module
    tensors = _pack(job, network, packed, subjects, store, quantizer, choice.float32_layers)
    del module, packed
    gc.collect()
    note = "; ".join(filter(None, notes)) or None
    try:
        graphs = tuple(_prove(job, network, subject, golden, note) for subject in subjects)
    except ParityError as error:
        if choice.overflow is None:
            raise
        why = f"with only these in float32, {str(error).partition('. ')[0]}"
        raise MixedPrecisionFailed(Choice("fp32", choice.overflow.note_of_whole(why))) from error
    if network.name in TEXT_ENCODERS:
        _keep_texts(job, network, subjects[0].wanted)
    if job.plan_groups:
        graphs = tuple(_build_plans(job, spec) for spec in graphs)
    golden_file = f"{network.name}/{GOLDEN_FILE}"
    job.staging.write(golden_file, [save(golden.tensors)])
    return ComponentSpec(graphs, f"{network.name}/{WEIGHTS_FILE}", golden_file, count, tensors)


def _keep_texts(job: Job, network: Network, made: Sequence[Outputs]) -> None:
    """Keep what the golden prompts are to the UNet: of two text encoders, side by side."""
    hidden, pooled = (
        np.concatenate([outputs[tensor.name] for outputs in made]) for tensor in network.outputs
    )
    known = job.text_rows.get("encoder_hidden_states", hidden[..., :0])
    job.text_rows["encoder_hidden_states"] = np.concatenate([known, hidden], axis=-1)
    if len(job.architecture.texts) > 1:
        job.text_rows["text_embeds"] = pooled


def check_prompt_states(
    network: Network, plain: Sequence[Outputs], prompt: Sequence[Outputs]
) -> None:
    """Hold the graph that goes layer by layer to what the network itself computes.

    Both are references from PyTorch; the first of ``prompt`` is of the second plain text. Raises
    ParityError.
    """
    hidden, pooled = (tensor.name for tensor in network.outputs)
    states = {hidden: prompt[0]["skip_states"][:, 0], pooled: prompt[0]["pooler_output"]}
    for name, got in states.items():
        _require_same(network.name, name, got, plain[1][name], "transformers")


def check_deep_steps(
    network: Network, module: torch.nn.Module, subjects: Sequence[Subject], golden: Golden
) -> None:
    """Hold the deep graph, and the shallow one behind it, to what the UNet itself computes.

    All three run in PyTorch, on the inputs of the first plain case. Raises ParityError.
    """
    plain, deep, shallow = (
        next(subject for subject in subjects if subject.spec.variant == variant)
        for variant in (PLAIN, DEEP, SHALLOW)
    )
    whole, made = plain.wanted[0]["out_sample"], deep.wanted[0]
    inputs = golden_inputs(plain.cases[0], plain.spec, golden.tensors)
    inputs["deep_features"] = made["deep_features"]
    behind = run_module(network, module, shallow.spec, inputs)
    for prediction in (made["out_sample"], behind["out_sample"]):
        _require_same("unet", "out_sample", prediction, whole, "diffusers")


def _require_same(part: str, name: str, got: Array, want: Array, library: str) -> None:
    error = relative_l2(got, want)
    if not error <= GATES["fp32"]:
        raise ParityError(
            f"{part}: going through it layer by layer gives another {name} than the network "
            f"itself, by a relative L2 of {error:.2g}. No bundle was written. Use a version of "
            f"{library} within the supported range"
        )


def store_precision(job: Job, part: str, precision: Precision) -> Precision:
    """What a network's matrices are kept in: fp16 graphs hold fp16, the others what was asked."""
    if precision == "fp16":
        return "fp16"
    asked = job.options.store or ("source" if job.options.precision == "fp16" else "fp32")
    if asked == "source":
        return job.checkpoint.parts[part].dtype
    return "fp16" if asked == "fp16" else "fp32"


def _choose_precision(job: Job, network: Network, module: torch.nn.Module) -> Choice:
    """fp16 where it was asked for, with float32 for the layers, or the network, that overflow."""
    if job.options.precision in (INT8, INT8_DYNAMIC):
        return Choice("int8" if network.name == "unet" else "fp32")
    if job.options.precision == "fp32":
        return Choice("fp32")
    overflow = find_overflow(module, lambda: _run_all_kinds(job, network, module))
    if overflow is None:
        return Choice("fp16")
    if not overflow.leaves_enough:
        return Choice("fp32", overflow.note_of_whole())
    return Choice("fp16", overflow.note_of_mixed(), overflow)


def _run_all_kinds(job: Job, network: Network, module: torch.nn.Module) -> float:
    """Run a network in float32 for each size and kind of graph; other batches are no larger.

    Returns the largest number that goes into or comes out of what would be float16 in a half graph.
    """
    tried: dict[tuple[Size | None, str], tuple[GraphSpec, list[str]]] = {}
    for spec, half in zip(job.specs(network, "fp32"), job.specs(network, "fp16"), strict=True):
        halves = [t.name for t in (*half.inputs, *half.outputs) if t.dtype == "float16"]
        tried.setdefault((spec.size, network.of(spec.variant).name), (spec, halves))
    largest = 0.0
    for spec, halves in tried.values():
        golden = Golden()
        subject = _subject(job, network, module, spec, golden)
        for case, wanted in zip(subject.cases, subject.wanted, strict=True):
            arrays = golden_inputs(case, spec, golden.tensors) | wanted
            largest = max(largest, *(float(np.abs(arrays[name]).max()) for name in halves))
    return largest


def _subjects(
    job: Job, network: Network, module: torch.nn.Module, precision: Precision, golden: Golden
) -> list[Subject]:
    return [_subject(job, network, module, spec, golden) for spec in job.specs(network, precision)]


def _subject(
    job: Job, network: Network, module: torch.nn.Module, spec: GraphSpec, golden: Golden
) -> Subject:
    cases = _cases(job, network, spec, golden)
    wanted = reference(network, module, spec, cases, golden.tensors)
    if spec.variant == DEEP:
        job.deep_scale = float(np.sqrt(np.mean(np.square(wanted[0]["deep_features"]))))
    return Subject(spec, cases, wanted)


def _cases(job: Job, network: Network, spec: GraphSpec, golden: Golden) -> list[GoldenCase]:
    if spec.variant == PROMPT:
        return prompt_cases(golden, spec, job.token_ids[network.name], job.embedding_scale)
    if network.name in TEXT_ENCODERS:
        return text_cases(golden, job.token_ids[network.name])
    if network.name == "unet":
        return unet_cases(golden, spec, job.text_rows, job.architecture, job.deep_scale)
    return noise_cases(spec, latent_scale(network.name, job.architecture))


def _say_tiling(job: Job, module: torch.nn.Module, subject: Subject, golden: Golden) -> str:
    """Say what attention within tiles changes, by the first graph."""
    tiles = job.options.attention_tiles
    (exact,) = (n for n in NETWORKS_OF[job.checkpoint.family] if n.name == "unet")
    whole = reference(exact, module, subject.spec, subject.cases, golden.tensors)
    pairs = zip(subject.wanted, whole, strict=True)
    worst = max(relative_l2(got["out_sample"], want["out_sample"]) for got, want in pairs)
    return (
        f"self-attention within {tiles}x{tiles} tiles: the outputs differ from the checkpoint's "
        f"by a relative L2 of {worst:.2g}; parity is measured against the same network in PyTorch"
    )


def _round_weights(
    network: Network, module: torch.nn.Module, subjects: Sequence[Subject], golden: Golden
) -> str | None:
    """Compute with the weights that float16 storage keeps, and say what that costs.

    Weights that came in float16 lose nothing. The graphs are then held to the fp32 gate against
    the rounded weights, and the rounding itself to the fp16 gate.
    """
    if not _round_to_float16(_parameters(network, module)):
        return None
    worst = 0.0
    for subject in subjects:
        rounded = reference(network, module, subject.spec, subject.cases, golden.tensors)
        for exact, got in zip(subject.wanted, rounded, strict=True):
            worst = max(worst, *(relative_l2(got[name], exact[name]) for name in exact))
        subject.wanted = rounded
    if not worst <= GATES["fp16"]:
        raise ParityError(
            f"{network.name}: rounding the weights to float16 changes the outputs by a relative L2 "
            f"of {worst:.2g}, more than {GATES['fp16']:g}. No bundle was written. Export with "
            "--store fp32"
        )
    return (
        f"weights rounded to float16 for storage: the outputs differ from the checkpoint's by a "
        f"relative L2 of {worst:.2g}; parity is measured against the rounded weights"
    )


def _round_to_float16(parameters: Mapping[str, torch.Tensor]) -> bool:
    """Round the matrices in place; whether that changed any number."""
    changed = False
    for parameter in parameters.values():
        if is_matrix(parameter.shape):
            rounded = parameter.half().float()
            changed = changed or not torch.equal(rounded, parameter)
            parameter.copy_(rounded)
    return changed


def _parameters(network: Network, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that a network uses of its part, by the module's names."""
    return {
        name: parameter.detach()
        for name, parameter in module.named_parameters()
        if not network.prefixes or name.startswith(network.prefixes)
    }


def _pack(
    job: Job,
    network: Network,
    module: torch.nn.Module,
    subjects: Sequence[Subject],
    store: Precision,
    quantizer: Quantizer | None = None,
    float32_layers: Collection[str] = (),
) -> dict[str, StoredTensor]:
    """Trace all graphs, write their shared weights and then the graphs that point into them."""
    parameters = _parameters(network, module)
    names = job.checkpoint.tensor_names(network.part, parameters)
    weights = WeightStore(
        {names[name]: tensor.numpy() for name, tensor in parameters.items()},
        source=job.checkpoint.parts[network.part].dtype,
        store=store,
    )
    if quantizer is not None:
        quantizer.declare(weights, {names[name]: p.numpy() for name, p in parameters.items()})
    traced_names = {TRACED_PREFIX + name: names[name] for name in parameters}
    traced, own = [], []  # the graphs, and those that a device has of its own
    for subject in subjects:
        file = subject.spec.file
        job.begin(f"{file}: tracing")
        model = export_graph(network, subject.spec, module, float32_layers)
        fused = fuse_for_cuda(model, network.name) if "cuda" in job.options.targets else None
        if quantizer is not None:
            quantizer.apply(model, weights)
        traced.append((subject, model, weights.adopt(model, traced_names)))
        if fused is not None:
            subject.fused = file.replace(".onnx", ".cuda.onnx")
            own.append((subject.fused, fused, weights.adopt(fused, traced_names)))
    job.begin(f"{network.name}: writing weights")
    job.staging.write(f"{network.name}/{WEIGHTS_FILE}", weights.chunks())
    for file, model, links in own:
        weights.link(model, links, WEIGHTS_FILE)
        job.staging.write(file, [serialized(model)])
    for subject, model, links in traced:
        weights.link(model, links, WEIGHTS_FILE)
        subject.spec = write_forms(job, network, subject.spec, model)
    return weights.tensors()


def _prove(
    job: Job, network: Network, subject: Subject, golden: Golden, note: str | None
) -> GraphSpec:
    """Pass the parity gate, and keep PyTorch's outputs as golden vectors."""
    spec = subject.spec
    job.begin(f"{spec.file}: proving")
    spec = measure_forms(job, spec, subject.cases, golden, subject.wanted)
    stem = spec.file.removeprefix(f"{network.name}/").removesuffix(".onnx")
    cases = tuple(
        GoldenCase(case.inputs, {name: golden.keep_output(f"{stem}.{i}.{name}", array)
                                 for name, array in wanted.items()})
        for i, (case, wanted) in enumerate(zip(subject.cases, subject.wanted, strict=True))
    )  # fmt: skip
    devices = {}
    if subject.fused:
        devices["cuda"] = prove_fused(
            spec, subject.fused, job.staging.folder, subject.cases, golden.tensors, subject.wanted
        )
    return msgspec.structs.replace(spec, golden=cases, note=note, devices=devices)


def _build_plans(job: Job, spec: GraphSpec) -> GraphSpec:
    job.begin(f"{spec.file}: building for TensorRT for RTX")
    return write_plans(spec, job.staging, job.plan_groups)
