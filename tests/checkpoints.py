"""Tiny checkpoints for the tests: every part of Stable Diffusion, a few thousand weights.

    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", scheduler="pndm", tiny_vae=True)
    keep_only_pickles(checkpoint)  # or another fault, for tests of bad input

Pictures are 64x64 (latents 8x8), prompts have 77 tokens, written in a fraction of a second.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import diffusers
import torch
import transformers
from safetensors.torch import load_file

from benchmarks.checkpoints import (
    END_OF_TEXT,
    Architecture,
    Model,
    build_vocabulary,
    write_checkpoint,
)

SchedulerName = Literal["ddim", "pndm"]

# Enough for "red", "circle" and "blue" to have merged parts, each pair built of earlier ones.
TINY_MERGES: Final = (
    ("r", "e"),
    ("re", "d</w>"),
    ("c", "i"),
    ("ci", "r"),
    ("l", "e</w>"),
    ("b", "l"),
    ("u", "e</w>"),
    ("bl", "ue</w>"),
)
VOCABULARY_SIZE: Final = len(build_vocabulary(TINY_MERGES))
TEXT_WIDTH: Final = 32

TINY_UNET: Final = Model(
    library="diffusers",
    class_name="UNet2DConditionModel",
    config={
        "_class_name": "UNet2DConditionModel",
        # The current version: before 0.9.0 diffusers replaces a sample_size below 64 by 64.
        "_diffusers_version": diffusers.__version__,
        "attention_head_dim": 2,  # in this class: the number of heads
        "block_out_channels": [32, 64],
        "cross_attention_dim": TEXT_WIDTH,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "in_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "out_channels": 4,
        "sample_size": 8,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    },
)

TINY_VAE: Final = Model(
    library="diffusers",
    class_name="AutoencoderKL",
    config={
        "_class_name": "AutoencoderKL",
        "_diffusers_version": diffusers.__version__,
        "block_out_channels": [8, 8, 16, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "out_channels": 3,
        "sample_size": 64,
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
)

TINY_TEXT_ENCODER: Final = Model(
    library="transformers",
    class_name="CLIPTextModel",
    prefix="text_model.",
    config={
        "architectures": ["CLIPTextModel"],
        "bos_token_id": VOCABULARY_SIZE - 2,
        "eos_token_id": VOCABULARY_SIZE - 1,
        "hidden_act": "quick_gelu",
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "pad_token_id": VOCABULARY_SIZE - 1,
        "projection_dim": TEXT_WIDTH,
        "transformers_version": transformers.__version__,
        "vocab_size": VOCABULARY_SIZE,
    },
)

# TAESD's place beside the full VAE; diffusers' pipeline has one VAE, so model_index leaves it out.
TINY_TAESD: Final = Model(
    library="diffusers",
    class_name="AutoencoderTiny",
    listed=False,
    config={
        "_class_name": "AutoencoderTiny",
        "_diffusers_version": diffusers.__version__,
        "decoder_block_out_channels": [8] * 4,
        "encoder_block_out_channels": [8] * 4,
        "num_decoder_blocks": [1] * 4,
        "num_encoder_blocks": [1] * 4,
    },
)

NOISE_LEVELS: Final = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
SCHEDULERS: Final[dict[SchedulerName, dict[str, Any]]] = {
    "ddim": {"_class_name": "DDIMScheduler", **NOISE_LEVELS, "clip_sample": False},
    "pndm": {"_class_name": "PNDMScheduler", **NOISE_LEVELS, "skip_prk_steps": True},
}


def tiny_architecture(scheduler: SchedulerName = "ddim", *, tiny_vae: bool = False) -> Architecture:
    """Return Stable Diffusion's parts at toy size."""
    models = {"text_encoder": TINY_TEXT_ENCODER, "unet": TINY_UNET, "vae": TINY_VAE}
    return Architecture(
        pipeline="StableDiffusionPipeline",
        version=diffusers.__version__,
        models=models | ({"vae_tiny": TINY_TAESD} if tiny_vae else {}),
        scheduler=SCHEDULERS[scheduler],
        extra={
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
        },
    )


def tiny_xl_architecture(scheduler: SchedulerName = "ddim") -> Architecture:
    """Return SDXL's parts at toy size: two text encoders of different widths."""
    second = TINY_TEXT_ENCODER.config | {
        "architectures": ["CLIPTextModelWithProjection"],
        "eos_token_id": 2,  # as in SDXL's file, from before 2023: it means the largest id
        "hidden_act": "gelu",
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "pad_token_id": 0,
        "projection_dim": 40,
    }
    unet = TINY_UNET.config | {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "attention_head_dim": [2, 4],
        "cross_attention_dim": TEXT_WIDTH + 48,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "projection_class_embeddings_input_dim": 40 + 6 * 8,
        "transformer_layers_per_block": [1, 2],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    }
    return Architecture(
        pipeline="StableDiffusionXLPipeline",
        version=diffusers.__version__,
        models={
            "text_encoder": TINY_TEXT_ENCODER,
            "text_encoder_2": Model(
                library="transformers", class_name="CLIPTextModelWithProjection", config=second
            ),
            "unet": replace(TINY_UNET, config=unet),
            "vae": replace(TINY_VAE, config=TINY_VAE.config | {"scaling_factor": 0.13025}),
        },
        scheduler=SCHEDULERS[scheduler],
        tokenizers={"tokenizer": END_OF_TEXT, "tokenizer_2": "!"},
        extra={"force_zeros_for_empty_prompt": True},
    )


def write_tiny_xl_checkpoint(folder: Path, *, seed: int = 0) -> Path:
    """Write a whole checkpoint of SDXL's kind and return its folder."""
    write_checkpoint(folder, tiny_xl_architecture(), TINY_MERGES, seed=seed, dtype=torch.float32)
    return folder


def write_tiny_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    scheduler: SchedulerName = "ddim",
    tiny_vae: bool = False,
    dtype: torch.dtype = torch.float32,
    force: bool = False,
) -> Path:
    """Write a whole, loadable checkpoint and return its folder."""
    architecture = tiny_architecture(scheduler, tiny_vae=tiny_vae)
    write_checkpoint(folder, architecture, TINY_MERGES, seed=seed, dtype=dtype, force=force)
    return folder


# --- faults, for the tests of bad input ----------------------------------------------------------


def keep_only_pickles(checkpoint: Path, component: str = "unet") -> None:
    """Replace a network's safetensors by a pickled .bin of the same weights."""
    (weights,) = (checkpoint / component).glob("*.safetensors")
    name = weights.stem if weights.stem.startswith("diffusion") else "pytorch_model"
    torch.save(load_file(weights), weights.with_name(f"{name}.bin"))
    weights.unlink()


def remove_component(checkpoint: Path, component: str = "vae") -> None:
    """Take a folder away that model_index.json still names."""
    shutil.rmtree(checkpoint / component)


def break_config(checkpoint: Path, component: str = "unet") -> None:
    """Cut a component's config off in the middle, as an interrupted download does."""
    (config,) = (checkpoint / component).glob("*config.json")
    text = config.read_text(encoding="utf-8")
    config.write_text(text[: len(text) // 2], encoding="utf-8")


def diffusers_pipeline(checkpoint: Path) -> Any:
    """diffusers' own pipeline on a checkpoint, upcast to fp32, without a progress bar."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        checkpoint,
        dtype=torch.float32,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        local_files_only=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def diffusers_xl_pipeline(checkpoint: Path) -> Any:
    """The same for a checkpoint of SDXL's kind."""
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(
        checkpoint, dtype=torch.float32, add_watermarker=False, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def diffusers_latents(pipeline: Any, seed: int, **arguments: Any) -> Any:
    """The final latents of a diffusers pipeline, as a tensor."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return pipeline(generator=generator, output_type="latent", **arguments).images
