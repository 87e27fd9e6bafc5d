"""Image to image equals diffusers' pipeline: same checkpoint, picture, seed and strength."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediffusion as ed
from edgediffusion.golden import relative_l2
from edgediffusion.options import NAMES
from tests.checkpoints import diffusers_latents, diffusers_pipeline
from tests.test_diffusers_parity import CHECKPOINT, CONFIG, LATENTS_L2, PROMPT

diffusers = pytest.importorskip("diffusers")
Image = pytest.importorskip("PIL.Image")

# diffusers 0.42.1 hands tensors to NumPy in a way that NumPy 2 deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def reference() -> Any:
    whole = diffusers_pipeline(CHECKPOINT)
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(
        **whole.components, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of another size than the run's, and of the same shape."""
    across, down = np.meshgrid(np.linspace(0, 255, 160), np.linspace(0, 255, 160))
    pixels = np.stack([across, down, 255 - across], axis=2).astype(np.uint8)
    path = tmp_path_factory.mktemp("start") / "gradient.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler", "ddim", "pndm", "lms", "unipc"])
def test_latents_equal_diffusers(
    pipe: ed.Pipeline, reference: Any, picture: Path, sampler: str, strength: float
) -> None:
    name, fixed = NAMES[sampler]
    reference.scheduler = getattr(diffusers, name).from_config(CONFIG, **fixed)
    want = diffusers_latents(
        reference,
        5,
        prompt=PROMPT,
        negative_prompt="",
        image=Image.open(picture).resize((128, 128), Image.Resampling.LANCZOS),
        strength=strength,
        num_inference_steps=10,
        guidance_scale=3.0,
    ).numpy()
    request = ed.Request(
        prompt=PROMPT,
        steps=10,
        guidance=3,
        seed=5,
        sampler=sampler,
        image=picture,
        strength=strength,
    )
    assert relative_l2(pipe.generate(request).latents, want) <= LATENTS_L2


@pytest.mark.filterwarnings("ignore:You have passed 2 text prompts:FutureWarning")
def test_a_batch_drawn_together_equals_diffusers(
    pipe: ed.Pipeline, reference: Any, picture: Path
) -> None:
    reference.scheduler = diffusers.DDIMScheduler.from_config(CONFIG)
    want = diffusers_latents(
        reference,
        5,
        prompt=PROMPT,
        negative_prompt="",
        image=Image.open(picture).resize((128, 128), Image.Resampling.LANCZOS),
        num_images_per_prompt=2,
        num_inference_steps=5,
        guidance_scale=3.0,
    ).numpy()
    asked: dict[str, Any] = {"noise_layout": "diffusers-batch", "batch": 2, "sampler": "ddim"}
    request = ed.Request(prompt=PROMPT, steps=5, guidance=3, seed=5, image=picture, **asked)
    assert relative_l2(pipe.generate(request).latents, want) <= LATENTS_L2


def test_image_i_of_a_batch_is_the_single_picture_of_its_seed(
    pipe: ed.Pipeline, picture: Path
) -> None:
    request = ed.Request(prompt=PROMPT, steps=5, seed=5, image=picture, batch=2)
    both = pipe.generate(request).images
    second = pipe.generate(ed.Request(prompt=PROMPT, steps=5, seed=6, image=picture)).images
    assert (both[1] == second[0]).all()
