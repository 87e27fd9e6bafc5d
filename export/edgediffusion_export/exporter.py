"""Export a checkpoint: every network in turn, proven, into one bundle."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

from edgediffusion import __version__
from edgediffusion.errors import RequestError
from edgediffusion.manifest import (
    ComponentSpec,
    Conditioning,
    Defaults,
    LatentSpec,
    Manifest,
    TokenizerSpec,
    tokenizer_name,
)
from edgediffusion.manifest_file import format_of
from edgediffusion.tokenizer import Tokenizer
from edgediffusion_export.bundle import staged
from edgediffusion_export.component import export_component, store_precision
from edgediffusion_export.golden import PROMPTS
from edgediffusion_export.job import Job, Progress
from edgediffusion_export.options import ExportOptions
from edgediffusion_export.parity import gates_of
from edgediffusion_export.source import open_checkpoint
from edgediffusion_export.tokenizer import export_tokenizer

TOOLS: Final = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")


def export_checkpoint(options: ExportOptions, progress: Progress | None = None) -> Path:
    """Export a checkpoint and return the folder of the new bundle.

    Raises CheckpointError, RequestError, ParityError or OutputError; there is no new bundle then,
    and an old one is untouched.
    """
    created = _now()
    with staged(options.output, force=options.force) as staging:
        checkpoint = open_checkpoint(options.checkpoint, options.revision)
        job = Job(options, checkpoint, staging, progress)
        tokenizers = [_write_tokenizer(job, network.name) for network in job.text_encoders()]
        components = {network.name: export_component(job, network) for network in job.networks}
        job.begin("hashing the checkpoint")
        staging.finish(_manifest(job, components, tokenizers, created))
    return options.output


def _write_tokenizer(job: Job, encoder: str) -> TokenizerSpec:
    """Write ``tokenizer.json`` and tokenize the golden prompts with the runtime's tokenizer."""
    folder = job.checkpoint.folder / tokenizer_name(encoder)
    spec, data = export_tokenizer(folder, job.architecture.tokens)
    job.staging.write(spec.file, [data])
    job.tokenizers[encoder] = Tokenizer(spec, job.staging.folder / spec.file)
    job.token_ids[encoder] = [job.tokenize(prompt, encoder) for prompt in PROMPTS]
    return spec


def _manifest(
    job: Job, components: dict[str, ComponentSpec], tokenizers: list[TokenizerSpec], created: str
) -> Manifest:
    options, checkpoint, architecture = job.options, job.checkpoint, job.architecture
    unet = components["unet"].graphs[0].precision
    tools = (*TOOLS, "tensorrt-rtx") if job.plan_groups else TOOLS
    return Manifest(
        format=format_of(components),
        name=options.name or checkpoint.name,
        family=checkpoint.family,
        created=created,
        tools={"edgediffusion": __version__} | {tool: metadata.version(tool) for tool in tools},
        source=checkpoint.source(),
        license=options.license or checkpoint.license,
        precision=unet,
        store=store_precision(job, "unet", unet),
        components=components,
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1] if len(tokenizers) > 1 else None,
        scheduler=checkpoint.scheduler,
        latent=LatentSpec(
            channels=architecture.channels,
            downsampling=architecture.downsampling,
            scaling_factor=architecture.scaling_factor,
            shift_factor=architecture.shift_factor,
            rgb=job.latent_rgb[:-1],
            rgb_bias=job.latent_rgb[-1],
        ),
        conditioning=_conditioning(job),
        gates=gates_of(components),
        defaults=Defaults(steps=options.steps, guidance=options.guidance, sampler=options.sampler),
        files=dict(sorted(job.staging.files.items())),
    )


def _conditioning(job: Job) -> Conditioning:
    encoders = job.text_encoders()
    return Conditioning(
        recipe=job.recipe,
        hidden_state=encoders[0].outputs[0].name,
        width=job.architecture.width,
        zero_empty_negative=job.checkpoint.zero_empty_negative,
    )


def _now() -> str:
    """The time of the export in UTC, or SOURCE_DATE_EPOCH for builds that must repeat."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is not None and not epoch.isdecimal():
        raise RequestError(f"SOURCE_DATE_EPOCH must be seconds since 1970, got {epoch!r}")
    moment = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(int(epoch), UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
