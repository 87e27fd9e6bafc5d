"""The full-size architectures, as data: configs of the published checkpoints, counts to check.

Their old version numbers are kept, so that the same compatibility paths of diffusers and
transformers run on load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from benchmarks.checkpoints import CLIP_VOCABULARY_SIZE, END_OF_TEXT, Architecture, Model

DOWN: Final = "CrossAttnDownBlock2D"
UP: Final = "CrossAttnUpBlock2D"

# The checkpoints were trained with one noise schedule; they differ in the sampler named with it.
NOISE: Final[Mapping[str, Any]] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
NO_CHECKER: Final[Mapping[str, Any]] = {
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
}


def unet(parameters: int, version: str, **own: Any) -> Model:
    """A UNet of Stable Diffusion: what its versions share, and each one's own entries."""
    shared = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": version,
        "act_fn": "silu",
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "down_block_types": [DOWN, DOWN, DOWN, "DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "up_block_types": ["UpBlock2D", UP, UP, UP],
    }
    return Model(
        library="diffusers",
        class_name="UNet2DConditionModel",
        parameters=parameters,
        config=dict(sorted((shared | own).items())),
    )


def vae(version: str, **own: Any) -> Model:
    """The autoencoder, which has one shape in all versions."""
    shared = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": version,
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    return Model(
        library="diffusers",
        class_name="AutoencoderKL",
        parameters=83_653_863,
        config=dict(sorted((shared | own).items())),
    )


def text_encoder(parameters: int, version: str, prefix: str = "text_model.", **own: Any) -> Model:
    """A text encoder of CLIP. transformers 5 dropped the prefix of its tensors, the files have it.

    eos_token_id 2 is the published configs' own mistake; transformers then finds the end of the
    text as the highest token number. Exporters must live with it.
    """
    shared = {
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "pad_token_id": 1,
        "torch_dtype": "float32",
        "transformers_version": version,
        "vocab_size": CLIP_VOCABULARY_SIZE,
    }
    config = dict(sorted((shared | own).items()))
    return Model(
        library="transformers",
        class_name=config["architectures"][0],
        parameters=parameters,
        prefix=prefix,
        config=config,
    )


CLIP_VIT_L: Final = text_encoder(
    123_060_480,
    "4.22.0.dev0",
    _name_or_path="openai/clip-vit-large-patch14",
    hidden_act="quick_gelu",
    hidden_size=768,
    intermediate_size=3072,
    num_attention_heads=12,
    num_hidden_layers=12,
    projection_dim=768,
)

# OpenCLIP's ViT-H without its last layer, which SD 2 does not use.
CLIP_VIT_H: Final = text_encoder(
    340_387_840,
    "4.25.0.dev0",
    hidden_act="gelu",
    hidden_size=1024,
    intermediate_size=4096,
    num_attention_heads=16,
    num_hidden_layers=23,
    projection_dim=512,
)

# OpenCLIP's ViT-bigG; the class keeps the prefix of its tensors itself.
CLIP_VIT_BIG_G: Final = text_encoder(
    694_659_840,
    "4.32.0.dev0",
    prefix="",
    architectures=["CLIPTextModelWithProjection"],
    hidden_act="gelu",
    hidden_size=1280,
    intermediate_size=5120,
    num_attention_heads=20,
    num_hidden_layers=32,
    projection_dim=1280,
)

SD15: Final = Architecture(
    pipeline="StableDiffusionPipeline",
    version="0.6.0",
    models={
        "text_encoder": CLIP_VIT_L,
        # attention_head_dim is the number of heads in these configs, in all versions
        "unet": unet(
            859_520_964, "0.6.0", attention_head_dim=8, cross_attention_dim=768, sample_size=64
        ),
        "vae": vae("0.6.0", sample_size=512),
    },
    scheduler={"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", **NOISE},
    extra=NO_CHECKER,
)

# 512 pixels and a prediction of the noise; its successor for 768 pixels predicts v.
SD21_BASE: Final = Architecture(
    pipeline="StableDiffusionPipeline",
    version="0.10.0.dev0",
    models={
        "text_encoder": CLIP_VIT_H,
        "unet": unet(
            865_910_724,
            "0.10.0.dev0",
            attention_head_dim=[5, 10, 20, 20],
            cross_attention_dim=1024,
            dual_cross_attention=False,
            num_class_embeds=None,
            only_cross_attention=False,
            sample_size=64,
            use_linear_projection=True,
        ),
        "vae": vae("0.10.0.dev0", sample_size=768),
    },
    scheduler={
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.10.0.dev0",
        **NOISE,
        "prediction_type": "epsilon",
    },
    tokenizers={"tokenizer": "!"},
    extra=NO_CHECKER,
)


def at_768(base: Architecture) -> Architecture:
    """SD 2.1 for 768 pixels: attention scores in fp32, prediction of v, DDIM."""
    network = base.models["unet"]
    config = {**network.config, "sample_size": 96, "upcast_attention": True}
    own = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
    return replace(
        base,
        models={**base.models, "unet": replace(network, config=dict(sorted(config.items())))},
        scheduler={**base.scheduler, **own},
    )


SDXL: Final = Architecture(
    pipeline="StableDiffusionXLPipeline",
    version="0.19.0.dev0",
    models={
        "text_encoder": CLIP_VIT_L,
        "text_encoder_2": CLIP_VIT_BIG_G,
        "unet": unet(
            2_567_463_684,
            "0.19.0.dev0",
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            attention_head_dim=[5, 10, 20],
            block_out_channels=[320, 640, 1280],
            cross_attention_dim=2048,
            down_block_types=["DownBlock2D", DOWN, DOWN],
            projection_class_embeddings_input_dim=2816,
            sample_size=128,
            transformer_layers_per_block=[1, 2, 10],
            up_block_types=[UP, UP, "UpBlock2D"],
            use_linear_projection=True,
        ),
        "vae": vae("0.20.0.dev0", force_upcast=True, sample_size=1024, scaling_factor=0.13025),
    },
    scheduler={
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": "0.19.0.dev0",
        **NOISE,
        "interpolation_type": "linear",
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
    tokenizers={"tokenizer": END_OF_TEXT, "tokenizer_2": "!"},
    extra={"force_zeros_for_empty_prompt": True},
)

ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "sd15": SD15,
    "sd21": at_768(SD21_BASE),
    "sd21-base": SD21_BASE,
    "sdxl": SDXL,
}
