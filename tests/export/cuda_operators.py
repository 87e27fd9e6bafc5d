"""ONNX Runtime's fused operators in NumPy, as its ContribOperators.md documents them.

They are written from the documentation, not from our rules, and know nothing of a GPU: with them
onnx's reference evaluator runs a graph that is fused for CUDA.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from scipy.special import erf

DOMAIN = "com.microsoft"


def _wide(*arrays: Any) -> list[Any]:
    return [np.asarray(array, np.float64) for array in arrays]


def _group_norm(
    x: Any, gamma: Any, beta: Any, activation: int, channels_last: int, epsilon: float, groups: int
) -> Any:
    """y = gamma * (x - mean) / sqrt(variance + epsilon) + beta on (N, H, W, C), maybe SiLU."""
    assert channels_last == 1
    assert gamma.dtype == beta.dtype == np.float32  # the kernel takes no other
    n, h, w, c = x.shape
    wide = x.astype(np.float64).reshape(n, h * w, groups, c // groups)
    mean, variance = wide.mean((1, 3), keepdims=True), wide.var((1, 3), keepdims=True)
    y = ((wide - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * gamma + beta
    return (y / (1 + np.exp(-y)) if activation else y).astype(x.dtype)


class GroupNorm(OpRun):
    op_domain = DOMAIN

    def _run(self, x: Any, gamma: Any, beta: Any, **attributes: Any) -> Any:
        return (_group_norm(x, gamma, beta, **attributes),)


class SkipGroupNorm(OpRun):
    """s = x + skip + bias; skip is (N, H, W, C), (N, 1, 1, C) or (N, C)."""

    op_domain = DOMAIN

    def _run(
        self, x: Any, gamma: Any, beta: Any, skip: Any, bias: Any = 0.0, **attributes: Any
    ) -> Any:
        if skip.ndim == 2:
            skip = skip[:, None, None, :]
        total = sum(_wide(x, skip, bias)).astype(x.dtype)
        return (_group_norm(total, gamma, beta, **attributes), total)[: len(self.onnx_node.output)]


class BiasSplitGelu(OpRun):
    """Adds the bias, then the left half multiplies the GELU of the right half."""

    op_domain = DOMAIN

    def _run(self, x: Any, bias: Any) -> Any:
        left, right = np.split(sum(_wide(x, bias)), 2, axis=-1)
        return ((left * right * 0.5 * (1 + erf(right / np.sqrt(2)))).astype(x.dtype),)


class BiasAdd(OpRun):
    op_domain = DOMAIN

    def _run(self, x: Any, bias: Any, skip: Any) -> Any:
        return (sum(_wide(x, bias, skip)).astype(x.dtype),)


class SkipLayerNormalization(OpRun):
    """The layer norm of x + skip + bias; mean and deviation are never asked for; the sum is."""

    op_domain = DOMAIN

    def _run(
        self, x: Any, skip: Any, gamma: Any, beta: Any, bias: Any = 0.0, epsilon: float = 1e-12
    ) -> Any:
        total = sum(_wide(x, skip, 0.0 if bias is None else bias))
        centred = total - total.mean(-1, keepdims=True)
        y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * gamma + beta
        nothing = np.zeros(0, np.float32)
        outputs = (y.astype(x.dtype), nothing, nothing, total.astype(x.dtype))
        return outputs[: len(self.onnx_node.output)]


class MultiHeadAttention(OpRun):
    """softmax(Q K^T * scale) V on (batch, tokens, heads * width) each; scale 1 / sqrt(width)."""

    op_domain = DOMAIN

    def _run(self, q: Any, k: Any, v: Any, num_heads: int = 1, scale: float | None = None) -> Any:
        heads = [x.reshape(*x.shape[:2], num_heads, -1).swapaxes(1, 2) for x in _wide(q, k, v)]
        scores = heads[0] @ heads[1].swapaxes(2, 3) * (scale or heads[0].shape[-1] ** -0.5)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ heads[2]
        return (mixed.swapaxes(1, 2).reshape(*q.shape[:2], -1).astype(q.dtype),)


OPERATORS = [
    GroupNorm, SkipGroupNorm, BiasSplitGelu, BiasAdd, SkipLayerNormalization, MultiHeadAttention,
]  # fmt: skip


def evaluate(model: Any, inputs: dict[str, Any]) -> list[Any]:
    """Run an ONNX model with onnx's reference evaluator and the operators above."""
    outputs: list[Any] = ReferenceEvaluator(model, new_ops=OPERATORS).run(None, inputs)
    return outputs
