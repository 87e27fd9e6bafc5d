"""The same picture as diffusers: same checkpoint, same seed, fp32 on the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediffusion as ed
from benchmarks.sameness import psnr_db
from edgediffusion.golden import relative_l2
from edgediffusion.options import NAMES
from tests.checkpoints import diffusers_latents, diffusers_pipeline
from tests.other_roundings import on_amd

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

CHECKPOINT = Path(__file__).parents[1] / "models" / "shapes" / "checkpoint"
CONFIG = json.loads((CHECKPOINT / "scheduler" / "scheduler_config.json").read_text())
PROMPT = "a red circle above a blue square"
# The names of classes for models that predict epsilon in a latent space; of classes with several
# names, those that fix their options.
SAMPLERS = [
    name
    for name, (scheduler, fixed) in NAMES.items()
    if not scheduler.startswith(("EDM", "Flow", "IPNDM"))
    and (fixed or name == next(n for n in NAMES if NAMES[n].scheduler == scheduler))
]
LATENTS_L2 = 1e-3

# diffusers 0.42.1 hands tensors to NumPy in a way that NumPy 2 deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]
PSNR_DB = 60.0


@pytest.fixture(scope="module")
def reference() -> Iterator[Any]:
    """diffusers' own pipeline on the demo checkpoint, upcast to fp32, on one thread.

    pndm makes much of roundings, and PyTorch's are other ones with each number of threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield diffusers_pipeline(CHECKPOINT)
    torch.set_num_threads(threads)


def diffusers_picture(
    reference: Any, sampler: str, seed: int, guidance: float, steps: int = 20
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Final latents and unrounded picture (in 0..255) of diffusers."""
    name, fixed = NAMES[sampler]
    more = {"noise_sampler_seed": seed} if sampler == "dpmpp_sde" else fixed
    reference.scheduler = getattr(diffusers, name).from_config(CONFIG, **more)
    latents = diffusers_latents(
        reference,
        seed,
        prompt=PROMPT,
        negative_prompt="",
        num_inference_steps=steps,
        guidance_scale=guidance,
    )
    with torch.no_grad():
        decoded = reference.vae.decode(latents / reference.vae.config.scaling_factor).sample
    picture = (decoded / 2 + 0.5).clamp(0, 1) * 255
    return latents.numpy(), picture.round().numpy().transpose(0, 2, 3, 1)


def test_guidance_rescale_equals_diffusers(pipe: ed.Pipeline, reference: Any) -> None:
    reference.scheduler = diffusers.DDIMScheduler.from_config(CONFIG)
    want = diffusers_latents(
        reference,
        3,
        prompt=PROMPT,
        negative_prompt="",
        num_inference_steps=6,
        guidance_scale=6.0,
        guidance_rescale=0.7,
        eta=0.5,
    ).numpy()
    request = ed.Request(
        prompt=PROMPT,
        steps=6,
        guidance=6,
        guidance_rescale=0.7,
        eta=0.5,
        seed=3,
        sampler="ddim",
    )
    assert relative_l2(pipe.generate(request).latents, want) <= LATENTS_L2
    plain = pipe.generate(replace(request, guidance_rescale=0.0)).latents
    assert relative_l2(plain, want) > 0.05


@pytest.mark.parametrize("guidance", [4.0, 1.0])
@pytest.mark.parametrize(
    "sampler",
    [pytest.param(n, marks=[on_amd] if n in ("pndm", "plms") else []) for n in SAMPLERS],
)
def test_latents_and_pictures_equal_diffusers(
    pipe: ed.Pipeline, reference: Any, sampler: str, guidance: float
) -> None:
    if sampler == "dpmpp_sde":
        pytest.importorskip("torchsde", reason="diffusers' DPMSolverSDE draws from torchsde")
    want_latents, want_picture = diffusers_picture(reference, sampler, 7, guidance)
    request = ed.Request(prompt=PROMPT, steps=20, seed=7, sampler=sampler, guidance=guidance)
    result = pipe.generate(request)
    assert relative_l2(result.latents, want_latents) <= LATENTS_L2
    assert psnr_db(result.images, want_picture) >= PSNR_DB
    assert want_picture.std() > 10, "a flat picture would prove nothing"


def test_another_seed_is_another_picture(pipe: ed.Pipeline, reference: Any) -> None:
    want_latents, want_picture = diffusers_picture(reference, "ddim", 7, 4.0)
    result = pipe.generate(ed.Request(prompt=PROMPT, steps=20, seed=8, sampler="ddim", guidance=4))
    assert relative_l2(result.latents, want_latents) > 100 * LATENTS_L2
    assert psnr_db(result.images, want_picture) < PSNR_DB / 2


def test_a_diffusers_batch_is_the_same_batch(pipe: ed.Pipeline, reference: Any) -> None:
    reference.scheduler = diffusers.DDIMScheduler.from_config(reference.scheduler.config)
    want = diffusers_latents(
        reference,
        3,
        prompt=PROMPT,
        num_inference_steps=5,
        guidance_scale=4.0,
        num_images_per_prompt=2,
    ).numpy()
    got = pipe.generate(
        ed.Request(
            prompt=PROMPT,
            steps=5,
            guidance=4.0,
            seed=3,
            batch=2,
            sampler="ddim",
            noise_layout="diffusers-batch",
        )
    )
    assert relative_l2(got.latents, want) <= LATENTS_L2


def test_embeddings_equal_transformers(pipe: ed.Pipeline, reference: Any) -> None:
    ids = reference.tokenizer(
        [PROMPT, ""], padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        want = reference.text_encoder(ids)
    got = pipe.embed([PROMPT, ""])
    assert relative_l2(got.hidden, want.last_hidden_state.numpy()) <= 1e-4
    assert relative_l2(got.pooled, want.pooler_output.numpy()) <= 1e-4
