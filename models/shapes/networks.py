"""The networks of the checkpoint, in standard classes of diffusers and transformers."""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from scenes import COLOURS, RELATIONS, SHAPES, SIZES
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS: Final = 77
TEXT_PREFIX: Final = "text_model."
WORDS: Final = sorted(
    {"a", "an", "and", "on", "background", *SHAPES, *COLOURS, *SIZES, *" ".join(RELATIONS).split()}
)
SCHEDULER: Final = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Sizes:
    """The widths of the networks; the defaults are those of the committed checkpoint."""

    vae: tuple[int, ...] = (16, 32, 64, 64)
    vae_layers: int = 1
    unet: tuple[int, int] = (64, 128)
    unet_layers: int = 1
    unet_heads: int = 4
    text: int = 128
    text_layers: int = 3
    tiny: int = 24
    tiny_blocks: int = 2


DEFAULT: Final = Sizes()
MICRO: Final = Sizes(vae=(8, 8, 8, 8), unet=(16, 16), text=16, text_layers=1, tiny=8, tiny_blocks=1)
"""Networks that train in a moment, for the tests."""


def byte_symbols() -> dict[int, str]:
    """The printable character that stands for every byte, as in GPT-2 and CLIP."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + i) for i, byte in enumerate(others)
    }


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Every byte, also as the end of a word, and merges that make each caption word one token."""
    symbols = list(byte_symbols().values())
    words = [[*word[:-1], word[-1] + "</w>"] for word in WORDS]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in words for pair in itertools.pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = [_merge(word, best) for word in words]
    tokens = itertools.chain(
        symbols, (s + "</w>" for s in symbols), ("".join(pair) for pair in merges), (START, END)
    )
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every neighbouring `pair` of a word's symbols."""
    joined: list[str] = []
    for symbol in word:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write the tokenizer's files to `folder`, and load it from there."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special: dict[str, Any] = {
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
    }
    config = special | {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TOKENS,
        "do_lower_case": True,
        "add_prefix_space": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(folder)


def make_text_encoder(sizes: Sizes) -> CLIPTextModel:
    """The text encoder, for the vocabulary of `vocabulary()`."""
    vocab, _ = vocabulary()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocab),
            hidden_size=sizes.text,
            intermediate_size=4 * sizes.text,
            projection_dim=sizes.text,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=vocab[START],
            eos_token_id=vocab[END],
            pad_token_id=vocab[END],
        )
    )


def make_vae(sizes: Sizes) -> AutoencoderKL:
    """The autoencoder: 128x128 pictures to 4x16x16 latents."""
    return AutoencoderKL(
        block_out_channels=sizes.vae,
        layers_per_block=sizes.vae_layers,
        down_block_types=("DownEncoderBlock2D",) * len(sizes.vae),
        up_block_types=("UpDecoderBlock2D",) * len(sizes.vae),
        latent_channels=4,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=True,
        scaling_factor=1.0,
    )


def make_unet(sizes: Sizes) -> UNet2DConditionModel:
    """The denoiser: convolutions alone at 16x16, where time is dear; attention at 8x8."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=sizes.unet,
        layers_per_block=sizes.unet_layers,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=sizes.unet_heads,
        cross_attention_dim=sizes.text,
        norm_num_groups=8,
    )


def make_tiny(sizes: Sizes) -> AutoencoderTiny:
    """The fast decoder (and encoder) for the same latents, as the UNet produces them."""
    width, blocks = (sizes.tiny,) * 4, sizes.tiny_blocks
    return AutoencoderTiny(
        encoder_block_out_channels=width,
        decoder_block_out_channels=width,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(blocks, blocks, blocks, 1),
        scaling_factor=1.0,
    )


def make_scheduler() -> DDIMScheduler:
    """The noise schedule; it also says how PNDM runs, should a user choose it."""
    scheduler = DDIMScheduler(**SCHEDULER)
    scheduler.register_to_config(skip_prk_steps=True)
    return scheduler


def count(*networks: torch.nn.Module) -> int:
    """How many parameters the networks have together."""
    return sum(p.numel() for network in networks for p in network.parameters())


def save_checkpoint(
    target: Path,
    *,
    text_encoder: CLIPTextModel,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    tiny: AutoencoderTiny,
) -> None:
    """Write the diffusers folder in fp16 beside `target`, then swap it in."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    pipe = StableDiffusionPipeline(
        vae=_half(vae),
        text_encoder=_half(text_encoder),
        tokenizer=make_tokenizer(new / "tokenizer"),
        unet=_half(unet),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(new, safe_serialization=True)
    publish_names(new / "text_encoder" / "model.safetensors")
    _half(tiny).save_pretrained(new / "vae_tiny", safe_serialization=True)
    new.chmod(0o755)
    for file in new.rglob("*.*"):
        file.chmod(0o644)
    swap(new, target)


def publish_names(file: Path) -> None:
    """Put back the prefix of the text encoder's tensors, as in every published checkpoint.

    transformers 5 saves without it and reads both; earlier versions, and programs beside it, read
    files with it only, and start from random weights without an error.
    """
    tensors = {
        TEXT_PREFIX + name.removeprefix(TEXT_PREFIX): each for name, each in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})


def _half(network: Any) -> Any:
    """A copy of a network in fp16, in evaluation mode."""
    return copy.deepcopy(network).half().eval()


def swap(new: Path, target: Path) -> None:
    """Put the folder `new` in the place of `target`."""
    old = target.with_name(f".{target.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)
