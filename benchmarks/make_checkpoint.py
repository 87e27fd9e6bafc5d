"""Write a full-size checkpoint: the true architecture, seeded random weights.

    python benchmarks/make_checkpoint.py sd15 -o DIR

Speed, memory and numerical error of an export do not depend on what a network has learnt, so
benchmarks and tests of the full size need no download.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.checkpoints import (
    CLIP_VOCABULARY_SIZE,
    Architecture,
    Merges,
    Model,
    read_merges,
    write_checkpoint,
)

REPOSITORY: Final = Path(__file__).resolve().parents[1]
CLIP_VOCABULARY: Final = REPOSITORY.parent / "shared/data/clip/bpe_simple_vocab_16e6.txt.gz"

# The configs are those of the published checkpoint, with its old version numbers: the same
# compatibility paths of diffusers and transformers run on load.
SD15_UNET: Final = Model(
    library="diffusers",
    class_name="UNet2DConditionModel",
    parameters=859_520_964,
    config={
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "attention_head_dim": 8,  # in this version: the number of heads
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": [
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": [
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ],
    },
)

SD15_VAE: Final = Model(
    library="diffusers",
    class_name="AutoencoderKL",
    parameters=83_653_863,
    config={
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
)

# eos_token_id 2 is the published config's own mistake; transformers then finds the end of the text
# as the highest token number. Exporters must live with it.
CLIP_VIT_L: Final = Model(
    library="transformers",
    class_name="CLIPTextModel",
    parameters=123_060_480,
    prefix="text_model.",  # transformers 5 dropped it from its modules, the files still have it
    config={
        "_name_or_path": "openai/clip-vit-large-patch14",
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "projection_dim": 768,
        "torch_dtype": "float32",
        "transformers_version": "4.22.0.dev0",
        "vocab_size": CLIP_VOCABULARY_SIZE,
    },
)

ARCHITECTURES: Final = {
    "sd15": Architecture(
        pipeline="StableDiffusionPipeline",
        version="0.6.0",
        models={"text_encoder": CLIP_VIT_L, "unet": SD15_UNET, "vae": SD15_VAE},
        scheduler={
            "_class_name": "PNDMScheduler",
            "_diffusers_version": "0.6.0",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "num_train_timesteps": 1000,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "trained_betas": None,
            "clip_sample": False,
        },
        extra={
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
        },
    ),
}


class Dtype(StrEnum):
    """How the weights are stored."""

    fp16 = "fp16"
    fp32 = "fp32"


TORCH_DTYPES: Final = {Dtype.fp16: torch.float16, Dtype.fp32: torch.float32}


def find_merges(path: Path, console: Console) -> Merges:
    """Read CLIP's merges, or say that a stand-in takes their place."""
    if path.is_file():
        return read_merges(path)
    console.print(
        f"No CLIP vocabulary at {path}: the tokenizer gets a byte-level stand-in of the same size, "
        "which splits every word into bytes. Pass --clip-vocab to use the real one.",
        soft_wrap=True,
    )
    return []


def parameter_total(architecture: Architecture) -> int:
    """Add up the known parameter counts."""
    return sum(model.parameters or 0 for model in architecture.models.values())


def main(
    architecture: Annotated[str, typer.Argument(help=f"One of: {', '.join(ARCHITECTURES)}.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    dtype: Annotated[Dtype, typer.Option(help="How the weights are stored.")] = Dtype.fp16,
    clip_vocab: Annotated[
        Path, typer.Option(help="OpenAI's bpe_simple_vocab_16e6.txt.gz.")
    ] = CLIP_VOCABULARY,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing folder.")] = False,
) -> None:
    """Write a checkpoint with the true architecture and seeded random weights."""
    console = Console(stderr=True)
    if architecture not in ARCHITECTURES:
        raise typer.BadParameter(f"got {architecture!r}, expected {', '.join(ARCHITECTURES)}")
    chosen = ARCHITECTURES[architecture]
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(architecture, total=parameter_total(chosen))
        try:
            write_checkpoint(
                output,
                chosen,
                find_merges(clip_vocab, console),
                vocabulary_size=CLIP_VOCABULARY_SIZE,
                seed=seed,
                dtype=TORCH_DTYPES[dtype],
                force=force,
                advance=lambda parameters: progress.advance(task, parameters),
            )
        except FileExistsError as error:
            console.print(f"Error: {error}", soft_wrap=True)
            raise typer.Exit(1) from error
    console.print(f"Wrote {output}: {parameter_total(chosen):,} parameters, seed {seed}.")


if __name__ == "__main__":
    typer.run(main)
