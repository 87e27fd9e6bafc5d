from __future__ import annotations

import dataclasses

import numpy as np
import torch

from edgediffusion_export.graphs import NETWORKS
from edgediffusion_export.latent_rgb import fit_latent_rgb, smooth_pictures
from tests.export.test_architecture import architecture


class LinearEncoder(torch.nn.Module):
    """Latents that are a known linear map of the average colour of 8x8 pixels."""

    def __init__(self, mix: torch.Tensor) -> None:
        super().__init__()
        self.mix = mix
        self.quant_conv = None

    def encoder(self, picture: torch.Tensor) -> torch.Tensor:
        pooled = torch.nn.functional.avg_pool2d(picture, 8)
        mean = torch.einsum("lc,bchw->blhw", self.mix, pooled)
        return torch.cat([mean, torch.zeros_like(mean)], dim=1)


def test_a_linear_encoder_is_inverted() -> None:
    mix = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    encoder = next(network for network in NETWORKS if network.name == "vae_encoder")
    chosen = dataclasses.replace(architecture(), scaling_factor=0.5, shift_factor=0.25)
    *rows, bias = fit_latent_rgb(encoder, LinearEncoder(mix), chosen)
    colour = np.array([0.9, 0.2, 0.4])
    latents = (mix.numpy() @ (colour * 2 - 1) - 0.25) * 0.5
    np.testing.assert_allclose(latents @ np.array(rows) + np.array(bias), colour, atol=1e-3)


def test_the_pictures_are_always_the_same() -> None:
    first, second = (np.stack(list(smooth_pictures(6, 16))) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.min() >= 0
    assert first.max() <= 1
    assert first.std(axis=(2, 3)).max() > 0.05
