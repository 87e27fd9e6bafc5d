"""SDXL's kind of checkpoint: exported, and the same pictures as diffusers' own pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediffusion as ed
from edgediffusion.golden import relative_l2
from tests.checkpoints import diffusers_latents, diffusers_xl_pipeline, write_tiny_xl_checkpoint
from tests.test_diffusers_parity import LATENTS_L2

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

PROMPT = "a red circle"
# diffusers 0.42.1 hands tensors to NumPy in a way that NumPy 2 deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def xl_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_xl_checkpoint(tmp_path_factory.mktemp("xl") / "tiny-xl")


@pytest.fixture(scope="module")
def xl_bundle(xl_checkpoint: Path) -> Path:
    from edgediffusion_export.exporter import export_checkpoint
    from edgediffusion_export.options import ExportOptions

    return export_checkpoint(
        ExportOptions(
            checkpoint=str(xl_checkpoint),
            output=xl_checkpoint.parent / "bundle",
            chunks=2,
            deepcache=True,
        )
    )


@pytest.fixture(scope="module")
def xl(xl_bundle: Path) -> Iterator[ed.Pipeline]:
    with ed.Pipeline.open(xl_bundle, device="cpu") as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def reference(xl_checkpoint: Path) -> Any:
    return diffusers_xl_pipeline(xl_checkpoint)


def test_the_bundle_says_what_it_is(xl_bundle: Path) -> None:
    manifest = ed.Bundle.open(xl_bundle).manifest
    assert manifest.format == 3
    assert manifest.family == "stable-diffusion-xl"
    assert list(manifest.tokenizers) == ["text_encoder", "text_encoder_2"]
    assert manifest.tokenizers["text_encoder_2"].pad == 0
    assert manifest.conditioning.recipe == "clip-pair"
    assert manifest.conditioning.width == 32 + 48
    assert manifest.conditioning.zero_empty_negative
    worst = max(g.parity.l2 for c in manifest.components.values() for g in c.graphs)
    assert worst <= 1e-4
    assert all(check.passed for check in ed.verify(ed.Bundle.open(xl_bundle), "cpu"))


@pytest.mark.parametrize(
    ("asked", "theirs"),
    [
        ({}, {}),
        ({"negative": "blue"}, {"negative_prompt": "blue"}),
        ({"guidance": 1.0}, {"guidance_scale": 1.0}),
        ({"clip_skip": 1}, {"clip_skip": 1}),
        ({"guidance_rescale": 0.7}, {"guidance_rescale": 0.7}),
    ],
)
def test_latents_equal_diffusers(
    xl: ed.Pipeline, reference: Any, asked: dict[str, Any], theirs: dict[str, Any]
) -> None:
    arguments = {"guidance_scale": 4.0, "num_inference_steps": 5} | theirs
    want = diffusers_latents(reference, 3, prompt=PROMPT, **arguments).numpy()
    request: dict[str, Any] = {"guidance": 4.0} | asked
    got = xl.generate(ed.Request(prompt=PROMPT, steps=5, seed=3, **request))
    assert relative_l2(got.latents, want) <= LATENTS_L2
    with torch.no_grad():
        decoded = reference.vae.decode(torch.from_numpy(want) / 0.13025).sample
    picture = ((decoded / 2 + 0.5).clamp(0, 1) * 255).numpy().transpose(0, 2, 3, 1)
    assert np.abs(got.images - picture).max() <= 1
    assert picture.std() > 10, "a flat picture would prove nothing"


def test_an_empty_negative_prompt_is_zeros_and_an_encoded_one_is_not(
    xl: ed.Pipeline, reference: Any
) -> None:
    asked = ed.Request(prompt=PROMPT, steps=3, seed=3, guidance=4)
    encoded = diffusers_latents(
        reference, 3, prompt=PROMPT, negative_prompt="", guidance_scale=4.0, num_inference_steps=3
    ).numpy()
    assert relative_l2(xl.generate(asked).latents, encoded) > 10 * LATENTS_L2


def test_image_to_image_equals_diffusers(xl: ed.Pipeline, reference: Any, tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    pipeline = diffusers.StableDiffusionXLImg2ImgPipeline(
        **reference.components, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    want = diffusers_latents(
        pipeline,
        5,
        prompt=PROMPT,
        image=Image.fromarray(pixels),
        strength=0.6,
        num_inference_steps=5,
        guidance_scale=3.0,
    ).numpy()
    request = ed.Request(prompt=PROMPT, steps=5, guidance=3, seed=5, image=pixels, strength=0.6)
    assert relative_l2(xl.generate(request).latents, want) <= LATENTS_L2


def test_embeddings_are_what_the_unet_takes(xl: ed.Pipeline, reference: Any) -> None:
    with torch.no_grad():
        states, _, pooled, _ = reference.encode_prompt(
            PROMPT, device="cpu", do_classifier_free_guidance=False
        )
    got = xl.embed([PROMPT])
    assert relative_l2(got.hidden, states.numpy()) <= 1e-4
    assert relative_l2(got.pooled, pooled.numpy()) <= 1e-4


def test_longer_prompts_and_shallow_steps_run(xl: ed.Pipeline) -> None:
    long = ed.Request(prompt="red " * 90, steps=2, seed=1, guidance=3, long_prompts="chunks")
    assert xl.generate(long).truncated == {}
    exact = xl.generate(ed.Request(prompt=PROMPT, steps=6, seed=1))
    saved = xl.generate(ed.Request(prompt=PROMPT, steps=6, seed=1, deepcache_interval=2))
    assert 0 < relative_l2(saved.latents, exact.latents) < 1


def test_one_component_at_a_time_reads_all_texts_before_the_next_is_loaded(
    xl_bundle: Path, xl: ed.Pipeline
) -> None:
    request = ed.Request(prompt=PROMPT, negative="blue", steps=2, seed=1, guidance=3)
    with ed.Pipeline.open(xl_bundle, device="cpu", residency="one") as pipe:
        loaded: list[str] = []
        open_graph = pipe._residents._open
        pipe._residents._open = lambda spec, lean: (  # type: ignore[method-assign]
            loaded.append(spec.file) or open_graph(spec, lean)  # type: ignore[func-returns-value]
        )
        got = pipe.generate(request)
    assert [file.split("/")[0] for file in loaded] == [
        "text_encoder", "text_encoder_2", "unet", "vae_decoder",
    ]  # fmt: skip
    np.testing.assert_array_equal(got.images, xl.generate(request).images)


def test_a_limit_of_memory_counts_both_text_encoders(xl_bundle: Path) -> None:
    with ed.Pipeline.open(xl_bundle, device="cpu", max_memory="1GB") as pipe:
        assert pipe.generate(ed.Request(prompt=PROMPT, steps=1, seed=1)).residency == "all"
