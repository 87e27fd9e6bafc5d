"""Pictures from the networks, with PyTorch: the reference for the product's own runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
)
from judge import judge
from networks import SCHEDULER, TOKENS
from numpy.typing import NDArray
from scenes import Caption, draw_caption, draw_scene, rng
from torch import Tensor

SCORE_SEED = 7
SAMPLERS: dict[str, Any] = {"ddim": DDIMScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}


@dataclass(frozen=True)
class Models:
    """What it takes to make a picture: the UNet, the autoencoder, and text to embeddings."""

    unet: Any
    vae: Any
    embed: Callable[[list[str]], Tensor]


def load_models(folder: Path, device: str = "cpu", *, tiny: bool = False) -> Models:
    """The networks of a checkpoint's folder, in fp32; with `tiny`, its fast decoder."""
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    vae = AutoencoderTiny.from_pretrained(folder / "vae_tiny") if tiny else pipe.vae
    parts = (pipe.unet, vae, pipe.text_encoder)
    unet, vae, text = (part.float().to(device).eval() for part in parts)
    return Models(unet, vae, embedder(pipe.tokenizer, text))


def tokenize(tokenizer: Any, texts: list[str]) -> Tensor:
    """Token ids (N, 77), as the pipeline makes them."""
    options = {"padding": "max_length", "max_length": TOKENS, "truncation": True}
    ids: Tensor = tokenizer(texts, return_tensors="pt", **options).input_ids
    return ids


def embedder(tokenizer: Any, text_encoder: Any) -> Callable[[list[str]], Tensor]:
    """The function from texts to the embeddings that the UNet attends to."""

    @torch.no_grad()
    def embed(texts: list[str]) -> Tensor:
        ids = tokenize(tokenizer, texts).to(text_encoder.device)
        hidden: Tensor = text_encoder(ids).last_hidden_state
        return hidden

    return embed


def draw_captions(number: int, *, held_out: bool) -> list[Caption]:
    """The captions of a score, half of them with one thing."""
    captions = []
    for i in range(number):
        random = rng(SCORE_SEED, int(held_out), i)
        scene = draw_scene(random, held_out=held_out, pair_share=0.5)
        captions.append(draw_caption(scene, random))
    return captions


@torch.no_grad()
def sample(
    models: Models,
    texts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 20,
    guidance: float = 2.0,
    sampler: str = "ddim",
    batch: int = 50,
) -> Iterator[NDArray[np.uint8]]:
    """One picture (128, 128, 3) for each text and seed."""
    device = next(models.unet.parameters()).device
    for start in range(0, len(texts), batch):
        part = list(texts[start : start + batch])
        context = torch.cat([models.embed([""] * len(part)), models.embed(part)])
        noise = [
            torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(seed))
            for seed in seeds[start : start + batch]
        ]
        x = torch.cat(noise).to(device)
        scheduler = SAMPLERS[sampler].from_config(SCHEDULER)
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            free, bound = models.unet(torch.cat([x, x]), t.to(device), context).sample.chunk(2)
            x = scheduler.step(free + guidance * (bound - free), t, x).prev_sample
        decoded = models.vae.decode(x / models.vae.config.scaling_factor).sample
        pixels = (decoded.float().clamp(-1, 1) + 1) * 127.5
        yield from pixels.round().byte().permute(0, 2, 3, 1).cpu().numpy()


def interim_score(models: Models, number: int) -> dict[str, float]:
    """The share of right pictures among a few held-out captions, all together and per attribute."""
    captions = draw_captions(number, held_out=True)
    pictures = sample(models, [str(c) for c in captions], range(number))
    verdicts = [judge(p, c) for p, c in zip(pictures, captions, strict=True)]
    names = sorted({name for verdict in verdicts for name in verdict})
    shares = {
        name: float(np.mean([verdict[name] for verdict in verdicts if name in verdict]))
        for name in names
    }
    return {"all": float(np.mean([all(v.values()) for v in verdicts]))} | shares
