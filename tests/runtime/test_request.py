from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import edgediffusion as ed
from edgediffusion.request import plan_request, request_from_recipe


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"steps": 0}, r"steps must be a whole number from 1 to 1000, got 0"),
        ({"steps": 1001}, r"steps must be a whole number from 1 to 1000, got 1001"),
        ({"steps": 2.5}, r"steps must be a whole number from 1 to 1000, got 2\.5"),
        ({"steps": True}, r"steps must be a whole number from 1 to 1000, got True"),
        ({"batch": 0}, r"batch must be a whole number from 1 to 1024, got 0"),
        ({"guidance": float("nan")}, r"guidance must be a finite number, got nan"),
        ({"guidance": float("inf")}, r"guidance must be a finite number, got inf"),
        ({"guidance": "high"}, r"guidance must be a finite number, got 'high'"),
        ({"seed": -1}, r"a seed is a whole number from 0 to 2\*\*64 - 1, got -1"),
        ({"seed": 2**64}, r"a seed is a whole number from 0 to 2\*\*64 - 1"),
        ({"seed": 1.5}, r"a seed is a whole number from 0 to 2\*\*64 - 1, got 1\.5"),
        ({"seed": "7"}, r"a seed is a whole number from 0 to 2\*\*64 - 1, got '7'"),
        ({"seed": [1, 2], "batch": 3}, r"got 2 seeds for a batch of 3: pass one for each image"),
        ({"sampler": "eular"}, r"unknown sampler 'eular': did you mean euler"),
        ({"size": (64, 96)}, r"has no graphs for 64x96; it has 128x128\. Ask for one of these"),
        ({"decoder": "tiniest"}, r"unknown decoder 'tiniest': did you mean tiny\?"),
        ({"noise_layout": "torch"}, r"unknown noise_layout 'torch': known: diffusers-batch"),
        ({"prompt": 7}, r"prompt must be a string, got int"),
        ({"negative": None}, r"negative must be a string, got NoneType"),
        ({"prompt_syntax": "weigthed"}, r"unknown prompt_syntax 'weigthed': did you mean weighted"),
        ({"prompt_syntax": None}, r"unknown prompt_syntax None: known: plain, weighted"),
        ({"long_prompts": "chunk"}, r"unknown long_prompts 'chunk': did you mean chunks\?"),
        ({"clip_skip": -1}, r"^clip_skip must be a whole number of at least 0, got -1"),
        ({"clip_skip": True}, r"clip_skip must be a whole number of at least 0, got True"),
        ({"negative_clip_skip": "2"}, r"negative_clip_skip must be a whole number .*, got '2'"),
    ],
)
def test_what_makes_no_sense_is_refused(demo: Path, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ed.RequestError, match=message):
        plan_request(ed.Request(**asked), ed.Bundle.open(demo))


def test_a_bad_request_is_refused_before_the_first_step(pipe: ed.Pipeline) -> None:
    with pytest.raises(ed.RequestError, match="steps must be"):
        pipe.stream(ed.Request(steps=0))
    with pytest.raises(ValueError, match=r"schedule: got .karas.; did you mean karras"):
        pipe.stream(ed.Request(schedule="karas"))


def test_a_bundle_without_tiny_decoder_says_so(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = ed.Bundle.open(demo)
    bundle.manifest.components.pop("vae_tiny_decoder")
    with pytest.raises(ed.RequestError, match="has no tiny decoder: its checkpoint had no vae_tin"):
        plan_request(ed.Request(decoder="tiny"), bundle)


def test_a_bundle_without_a_graph_for_prompts_names_the_fix(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = ed.Bundle.open(demo)
    monkeypatch.setattr(ed.Bundle, "variants", lambda *_: {"plain"})
    fix = "was made before its text encoder .*: edgediffusion export CHECKPOINT -o BUNDLE"
    for asked, wanted in (
        ({"clip_skip": 1}, "clip_skip"),
        ({"negative_clip_skip": 2}, "negative_clip_skip"),
        ({"embeddings": ["a.safetensors"]}, "textual-inversion embeddings"),
    ):
        with pytest.raises(ed.RequestError, match=f"shapes cannot do {wanted}: it {fix}"):
            plan_request(ed.Request(**asked), bundle)  # type: ignore[arg-type]
    assert plan_request(ed.Request(clip_skip=0), bundle).clip_skip == 0


def test_a_recipe_names_embeddings_by_hash() -> None:
    recipe = {"prompt": "a", "embeddings": [{"file": "a.st", "name": "a", "sha256": "0a"}]}
    request = request_from_recipe(recipe)
    assert request.embeddings == (ed.TextualInversion("a.st", "a", "0a"),)
    assert request_from_recipe({"prompt": "a"}) == ed.Request(prompt="a")


@pytest.mark.parametrize("file", ["/etc/a.st", "../a.st", "C:\\secret\\a.st", "a.st"])
def test_a_strangers_recipe_chooses_no_folder(file: str) -> None:
    request = request_from_recipe({"embeddings": [{"file": file, "name": "a", "sha256": "0a"}]})
    assert request.embeddings == (ed.TextualInversion("a.st", "a", "0a"),)


def test_a_misspelt_field_is_an_error() -> None:
    with pytest.raises(TypeError, match="stepps"):
        ed.Request(stepps=3)  # type: ignore[call-arg]


def test_none_means_the_bundles_own_default(demo: Path) -> None:
    bundle = ed.Bundle.open(demo)
    plan = plan_request(ed.Request(), bundle)
    assert plan.steps == bundle.manifest.defaults.steps
    assert plan.guidance == bundle.manifest.defaults.guidance
    assert plan.size == (128, 128)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"deepcache_interval": 0}, "deepcache_interval must be a whole number from 1 to 1000"),
        ({"deepcache_interval": 2.0}, r"deepcache_interval must be .* got 2\.0"),
        ({"guidance_every": 0}, "guidance_every must be a whole number from 1 to 1000, got 0"),
        ({"guidance_every": 1.5}, r"guidance_every must be .* got 1\.5"),
        ({"deepcache_start": -1}, "deepcache_start must be a whole number of at least 0, got -1"),
        ({"guidance_interval": (2, 1)}, r"guidance_interval must be two noise levels .* \(2, 1\)"),
        ({"guidance_interval": (-1, 1)}, "the lower one first and at least 0"),
        ({"guidance_interval": (1,)}, "guidance_interval must be two noise levels"),
        ({"guidance_interval": "ab"}, "guidance_interval must be two noise levels"),
        ({"guidance_interval": 3}, "guidance_interval must be two noise levels"),
        ({"guidance_interval": (float("nan"), 1)}, "guidance_interval must be two noise levels"),
    ],
)
def test_savings_out_of_range_are_refused(demo: Path, asked: Any, message: str) -> None:
    with pytest.raises(ed.RequestError, match=message):
        plan_request(ed.Request(**asked), ed.Bundle.open(demo))


def test_a_bundle_without_graphs_for_deepcache_names_the_fix(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ed.Bundle, "variants", lambda *_: {"plain"})
    with pytest.raises(ed.RequestError, match="leave it at 1, or export again with --deepcache"):
        plan_request(ed.Request(deepcache_interval=3), ed.Bundle.open(demo))


def test_a_recipe_says_infinity_by_null() -> None:
    interval = request_from_recipe({"guidance_interval": [0.5, None]}).guidance_interval
    assert interval == (0.5, float("inf"))
