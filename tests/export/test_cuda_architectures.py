"""What is fused for CUDA in the true architectures, whose weights need no values for that."""

from __future__ import annotations

import pytest

from benchmarks.gpu_graphs import graph_without_values
from benchmarks.gpu_pieces import Piece
from edgediffusion_export.cuda_counts import fusible_counts
from edgediffusion_export.cuda_graph import fuse_for_cuda, fused_operators

SD15 = {
    "BiasAdd": 16,  # one for each transformer
    "BiasSplitGelu": 16,
    "GroupNorm": 16,  # before the transformers
    "MultiHeadAttention": 32,
    "SkipGroupNorm": 45,  # two in each of 22 residual blocks, and the last one
    "SkipLayerNormalization": 32,  # two of three in each of 16 blocks
}
SDXL = {
    "BiasAdd": 11,
    "BiasSplitGelu": 70,
    "GroupNorm": 12,
    "MultiHeadAttention": 140,
    "SkipGroupNorm": 34,
    "SkipLayerNormalization": 199,  # all of 70 blocks but the first ones of 11 transformers
}


@pytest.mark.parametrize(
    ("piece", "operators", "silus"),
    [
        (Piece("sd15", "unet", 512), SD15, 45),
        pytest.param(Piece("sdxl", "unet", 1024), SDXL, 35, marks=pytest.mark.full_size),
    ],
    ids=lambda value: value.key if isinstance(value, Piece) else "",
)
def test_a_true_unet_is_fused_to_the_last_operator(
    piece: Piece, operators: dict[str, int], silus: int
) -> None:
    plain = graph_without_values(piece)
    assert fusible_counts(plain)["SiLUs behind them"] == silus
    fused = fuse_for_cuda(plain, "unet")  # which counts all kinds, by other means than the rules
    assert fused is not None
    assert fused_operators(fused) == operators
