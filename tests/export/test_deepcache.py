from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

import edgediffusion as ed
from edgediffusion.calls import Savings, plan_calls
from edgediffusion.errors import ParityError
from edgediffusion.golden import relative_l2
from edgediffusion_export import deepcache
from edgediffusion_export.deepcache import denoise_deep, denoise_shallow

Export = Callable[..., Path]

# As in Stable Diffusion 1, the other way round, and without any text near the surface.
BLOCKS = {
    "usual": ("CrossAttnDownBlock2D", "DownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
    "reversed": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "bare": ("DownBlock2D", "DownBlock2D", "UpBlock2D", "UpBlock2D"),
}


def unet(blocks: str, layers: int = 2) -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=BLOCKS[blocks][:2],
        up_block_types=BLOCKS[blocks][2:],
        layers_per_block=layers,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def inputs(seed: int = 0) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    sample, text = (torch.randn(shape, generator=draw) for shape in ((2, 4, 8, 8), (2, 5, 8)))
    return sample, torch.tensor([300.0]), text


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("blocks", BLOCKS)
@torch.no_grad()
def test_both_graphs_compute_what_the_network_computes(blocks: str, layers: int) -> None:
    model = unet(blocks, layers)
    whole = model(*inputs(), return_dict=False)[0]
    prediction, features = denoise_deep(model, *inputs())
    assert features.shape == (2, 8, 8, 8)
    assert relative_l2(prediction.numpy(), whole.numpy()) < 1e-6
    behind = denoise_shallow(model, *inputs(), features)
    assert relative_l2(behind.numpy(), whole.numpy()) < 1e-6


@torch.no_grad()
def test_a_shallow_step_depends_on_everything_that_it_takes() -> None:
    model, old, new = unet("usual"), inputs(0), inputs(1)
    features = denoise_deep(model, *old)[1]
    shallow = denoise_shallow(model, *new, features)
    for others in (
        denoise_shallow(model, *new, features + 1),
        denoise_shallow(model, old[0], *new[1:], features),
        denoise_shallow(model, new[0], new[1] + 100, new[2], features),
        denoise_shallow(model, *new[:2], old[2], features),
    ):
        assert not torch.allclose(shallow, others)


@pytest.fixture(scope="module")
def deep_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.bundles import export_tiny

    return export_tiny(checkpoint, tmp_path_factory.mktemp("deep") / "tiny", deepcache=True)


def test_a_run_takes_the_steps_that_pytorch_would_take(deep_bundle: Path, checkpoint: Path) -> None:
    """The graphs and the loop against the same loop over PyTorch's own network."""
    request = ed.Request(
        prompt="a", steps=5, guidance=3, seed=1, sampler="euler", deepcache_interval=2
    )
    with ed.Pipeline.open(deep_bundle) as pipe:
        texts = torch.from_numpy(pipe.embed(["", "a"]).hidden)
        got = pipe.generate(request)
        whole = pipe.generate(ed.Request(prompt="a", steps=5, guidance=3, seed=1, sampler="euler"))
        config = pipe.bundle.manifest.scheduler
    schedule = ed.schedule_from_config(config, steps=5, sampler="euler")
    levels = [row.level for row in schedule.rows]
    calls = iter(plan_calls(levels, Savings(deepcache_interval=2), guided=True))
    model = UNet2DConditionModel.from_pretrained(checkpoint / "unet").eval()
    kept: list[torch.Tensor] = []

    @torch.no_grad()
    def predict(sample: Any, timestep: float) -> Any:
        rows = torch.from_numpy(sample).repeat(2, 1, 1, 1), torch.tensor([timestep]), texts
        if next(calls).kind == "deep":
            prediction, features = denoise_deep(model, *rows)
            kept[:] = [features]
        else:
            prediction = denoise_shallow(model, *rows, kept[0])
        negative, positive = prediction.numpy()
        return (negative + 3 * (positive - negative))[None]

    *_, want = ed.sample(schedule, predict, ed.randn(got.latents.shape, 1))
    assert relative_l2(got.latents, want) < 1e-4
    assert relative_l2(whole.latents, want) > 1e-3


def test_features_are_kept_image_by_image(deep_bundle: Path) -> None:
    asked: dict[str, Any] = {"steps": 4, "guidance": 3, "deepcache_interval": 3}
    with ed.Pipeline.open(deep_bundle) as pipe:
        batch = pipe.generate(ed.Request(prompt="a", seed=5, batch=2, **asked))
        alone = pipe.generate(ed.Request(prompt="a", seed=6, **asked))
    np.testing.assert_array_equal(batch.latents[1], alone.latents[0])


def test_the_recipe_makes_the_same_picture_again(deep_bundle: Path) -> None:
    request = ed.Request(
        prompt="a",
        steps=4,
        guidance=3,
        seed=5,
        deepcache_interval=2,
        deepcache_start=1,
        guidance_interval=(0.5, float("inf")),
    )
    with ed.Pipeline.open(deep_bundle) as pipe:
        first = pipe.generate(request)
        again = pipe.generate(first.request)
    assert first.request.guidance_interval == (0.5, float("inf"))
    np.testing.assert_array_equal(first.images, again.images)


def test_a_network_that_computes_otherwise_layer_by_layer_is_refused(
    checkpoint: Path, tmp_path: Path, exporting: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = deepcache._leave
    monkeypatch.setattr(deepcache, "_leave", lambda *given: 1.01 * real(*given))
    with pytest.raises(ParityError, match="unet: going through it layer by layer gives another"):
        exporting(checkpoint, tmp_path / "b", deepcache=True)
    assert list(tmp_path.iterdir()) == []


def test_the_weights_are_there_once(deep_bundle: Path, tiny_bundle: Path) -> None:
    deep, plain = (ed.Bundle.open(folder).manifest for folder in (deep_bundle, tiny_bundle))
    unets = [manifest.components["unet"] for manifest in (deep, plain)]
    assert {g.variant for g in unets[0].graphs} - {g.variant for g in unets[1].graphs} == {
        "deep",
        "shallow",
    }
    assert unets[0].parameters == unets[1].parameters
    sizes = [m.files["unet/weights.safetensors"].size for m in (deep, plain)]
    assert sizes[0] <= 1.01 * sizes[1]
