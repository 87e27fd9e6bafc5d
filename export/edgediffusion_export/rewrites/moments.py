"""Sines and cosines of the timestep in float32, where OpenVINO computes the rest in bf16.

A diffusion model reads the timestep as sines and cosines of up to 1000 radians. In bf16 a number
near 1000 is a multiple of 4, and its sine is anything. PyTorch makes these features in float32 even
where the network is in bf16; OpenVINO rounds what goes into the sine: Stable Diffusion 1.5's UNet
is off by 9 % at timestep 951 then, by 0.6 % with this rewrite (relative L2, measured with OpenVINO
2026.4 on a CPU with AVX512-BF16). The size of the picture, which SDXL reads alike, fares the same.

OpenVINO leaves in float32 what leads to an output of the graph through no product of matrices. So
the features become outputs, which nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import onnx_ir as ir

NAME: Final = "moment_features"
"""What the first output is called; a second one has a number behind it."""

_PRODUCTS: Final = ("MatMul", "Gemm", "Conv")


def expose_moments(model: ir.Model) -> int:
    """Make outputs of the features of the moment."""
    found = find_moments(model.graph)
    for index, value in enumerate(found):
        value.name = NAME + (f"_{index + 1}" if index else "")
        model.graph.outputs.append(value)
    return len(found)


def find_moments(nodes: Iterable[ir.Node]) -> list[Any]:
    """What products of matrices take that sines lead to, through no other product."""
    reached: dict[Any, None] = {}
    found: dict[Any, None] = {}
    for node in nodes:
        sees = node.op_type in ("Sin", "Cos") or any(each in reached for each in node.inputs)
        if node.op_type in _PRODUCTS:
            found |= dict.fromkeys(each for each in node.inputs if each in reached)
        elif sees:
            reached |= dict.fromkeys(node.outputs)
    return list(found)
