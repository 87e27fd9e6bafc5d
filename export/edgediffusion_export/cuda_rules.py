"""Rewrite rules from plain ONNX operators to the fused ones of ONNX Runtime's CUDA provider.

What an operator computes, and which sizes its kernel takes, is read from ONNX Runtime's
ContribOperators.md and ``contrib_ops/cuda/diffusion`` (1.31). onnxscript finds attentions, sums in
front of a layer norm, and group norms; the rules here give group norms their SiLU and the sum in
front of them, and fuse the feed-forward's gate and its residual sum.

GroupNorm and SkipGroupNorm compute on channels-last tensors, so each comes between two Transposes.
With the provider's ``prefer_nhwc`` the convolutions do so, too, and the Transposes cancel.
"""

from __future__ import annotations

from typing import Any, Final

import onnx_ir as ir
from onnxscript.rewriter import RewriteRule, RewriteRuleSet
from onnxscript.rewriter.ort_fusions.instance_to_group_normalization import (
    check_if_simulated_instance_norm_is_used,
    instance_simulates_group_normalization_pattern,
)

DOMAIN: Final = "com.microsoft"
SPLIT_GELU_WIDTHS: Final = (2560, 5120, 10240)
"""Widths that BiasSplitGelu has a kernel for: eight times SD's 320, 640 and 1280 channels."""

_TO_LAST: Final = [0, 2, 3, 1]
_TO_FIRST: Final = [0, 3, 1, 2]
_MOST_PER_GROUP: Final = 512
_PER_THREAD: Final = 2


def fits_group_norm(channels: int, groups: int) -> bool:
    """Whether the CUDA kernel takes groups of that many channels: an even number up to 512."""
    width = channels // groups
    return width % _PER_THREAD == 0 and width <= _MOST_PER_GROUP


def _group_norm_fits(context: Any, **found: Any) -> bool:
    if not check_if_simulated_instance_norm_is_used(context, **found):
        return False
    return fits_group_norm(found["input_x"].shape[1], found["weight_for_norm"].shape[0])


def _group_norm(
    op: Any,
    input_x: ir.Value,
    weight_for_norm: ir.Value,
    weight_full: ir.Value,
    bias_full: ir.Value,
    epsilon: ir.Attr,
    **_: Any,
) -> ir.Value:
    normed = op.GroupNorm(
        op.Transpose(input_x, perm=_TO_LAST),
        _float_vector(op, weight_full),
        _float_vector(op, bias_full),
        activation=0,
        channels_last=1,
        epsilon=epsilon,
        groups=weight_for_norm.shape[0],
        _domain=DOMAIN,
    )
    return op.Transpose(normed, perm=_TO_FIRST)


def _float_vector(op: Any, weight: ir.Value) -> ir.Value:
    """A weight of shape (channels, 1, 1) as the kernel wants it: flat, and always float32.

    The flat one has the bytes of the checkpoint's own parameter, so it is stored once for all.
    """
    assert weight.const_value is not None
    flat = weight.const_value.numpy().reshape(-1)
    vector = op.initializer(ir.tensor(flat, name=f"{weight.name}.flat"))
    return vector if weight.dtype == ir.DataType.FLOAT else op.Cast(vector, to=ir.DataType.FLOAT)


GROUP_NORM: Final = RewriteRuleSet(
    [
        RewriteRule(
            instance_simulates_group_normalization_pattern,
            _group_norm,
            _group_norm_fits,
            name="GroupNorm",
        )
    ]
)


def _normed(op: Any, x: Any, gamma: Any, beta: Any, epsilon: Any, groups: Any) -> Any:
    normed = op.GroupNorm(
        x, gamma, beta, activation=0, channels_last=1, epsilon=epsilon, groups=groups,
        _domain=DOMAIN,
    )  # fmt: skip
    return op.Transpose(normed, perm=_TO_FIRST)


def _normed_silu_pattern(op: Any, x: Any, gamma: Any, beta: Any, epsilon: Any, groups: Any) -> Any:
    normed = _normed(op, x, gamma, beta, epsilon, groups)
    return op.Mul(normed, op.Sigmoid(normed))


def _normed_silu(op: Any, x: Any, gamma: Any, beta: Any, epsilon: Any, groups: Any) -> Any:
    normed = op.GroupNorm(
        x, gamma, beta, activation=1, channels_last=1, epsilon=epsilon, groups=groups,
        _domain=DOMAIN,
    )  # fmt: skip
    return op.Transpose(normed, perm=_TO_FIRST)


SILU: Final = RewriteRuleSet(
    [RewriteRule(_normed_silu_pattern, _normed_silu, name="GroupNorm with SiLU")], commute=True
)


def _skip_pattern(
    op: Any, x: Any, skip: Any, gamma: Any, beta: Any, epsilon: Any, groups: Any, activation: Any
) -> Any:
    total = op.Add(x, skip)
    normed = op.GroupNorm(
        op.Transpose(total, perm=_TO_LAST), gamma, beta,
        activation=activation, channels_last=1, epsilon=epsilon, groups=groups, _domain=DOMAIN,
    )  # fmt: skip
    return normed, total


def _is_residual(context: Any, x: ir.Value, skip: ir.Value, **_: Any) -> bool:
    return x.shape is not None and x.shape.rank() == 4 and x.shape == skip.shape


def _skip_group_norm(op: Any, x: ir.Value, skip: ir.Value, **rest: Any) -> Any:
    rest = {name: rest[name] for name in ("gamma", "beta", "epsilon", "groups", "activation")}
    normed, total = op.SkipGroupNorm(
        op.Transpose(x, perm=_TO_LAST),
        rest.pop("gamma"),
        rest.pop("beta"),
        op.Transpose(skip, perm=_TO_LAST),
        channels_last=1,
        _domain=DOMAIN,
        _outputs=2,
        **rest,
    )
    return normed, op.Transpose(total, perm=_TO_FIRST)


def _time_pattern(
    op: Any, x: Any, time: Any, gamma: Any, beta: Any, epsilon: Any, groups: Any, activation: Any
) -> Any:
    total = op.Add(x, op.Unsqueeze(time, [2, 3]))
    return op.GroupNorm(
        op.Transpose(total, perm=_TO_LAST), gamma, beta,
        activation=activation, channels_last=1, epsilon=epsilon, groups=groups, _domain=DOMAIN,
    )  # fmt: skip


def _is_per_channel(context: Any, x: ir.Value, time: ir.Value, **_: Any) -> bool:
    if x.shape is None or time.shape is None:
        return False
    return x.shape.rank() == 4 and list(time.shape) == list(x.shape)[:2]


def _time_group_norm(op: Any, x: ir.Value, time: ir.Value, **rest: Any) -> Any:
    rest = {name: rest[name] for name in ("gamma", "beta", "epsilon", "groups", "activation")}
    return op.SkipGroupNorm(
        op.Transpose(x, perm=_TO_LAST),
        rest.pop("gamma"),
        rest.pop("beta"),
        time,
        channels_last=1,
        _domain=DOMAIN,
        **rest,
    )


SKIP_GROUP_NORM: Final = RewriteRuleSet(
    [
        RewriteRule(_time_pattern, _time_group_norm, _is_per_channel, name="time embedding"),
        RewriteRule(_skip_pattern, _skip_group_norm, _is_residual, name="residual"),
    ],
    commute=True,
)


def _gate_pattern(op: Any, x: Any, bias: Any) -> Any:
    left, right = op.Split(op.Add(x, bias), axis=2, num_outputs=2, _outputs=2)
    return op.Mul(left, op.Gelu(right, approximate="none"))


def _gate_fits(context: Any, x: ir.Value, bias: ir.Value, **_: Any) -> bool:
    ranks = (x.shape is not None and x.shape.rank(), bias.shape is not None and bias.shape.rank())
    return ranks == (3, 1) and bias.shape[0] in SPLIT_GELU_WIDTHS


def _gate(op: Any, x: ir.Value, bias: ir.Value) -> Any:
    return op.BiasSplitGelu(x, bias, _domain=DOMAIN)


SPLIT_GELU: Final = RewriteRuleSet(
    [RewriteRule(_gate_pattern, _gate, _gate_fits, name="BiasSplitGelu")], commute=True
)


def _residual_pattern(op: Any, x: Any, bias: Any, skip: Any) -> Any:
    return op.Add(op.Add(x, bias), skip)


def _residual_fits(context: Any, x: ir.Value, bias: ir.Value, skip: ir.Value, **_: Any) -> bool:
    shapes = x.shape, bias.shape, skip.shape
    if None in shapes or bias.const_value is None:
        return False
    return (x.shape.rank(), bias.shape.rank()) == (3, 1) and x.shape == skip.shape


def _residual(op: Any, x: ir.Value, bias: ir.Value, skip: ir.Value) -> Any:
    return op.BiasAdd(x, bias, skip, _domain=DOMAIN)


BIAS_ADD: Final = RewriteRuleSet(
    [RewriteRule(_residual_pattern, _residual, _residual_fits, name="BiasAdd")], commute=True
)


def _arg_max_pattern(op: Any, x: Any) -> Any:
    return op.ArgMax(x, axis=-1, keepdims=0, select_last_index=0)


def _arg_max(op: Any, x: ir.Value) -> Any:
    """The first place of the largest number, which the provider has no kernel for in opset 20.

    Where the largest stands, count down from the row's length; the highest count is the first.
    float32 holds every token number and place exactly.
    """
    length = x.shape[-1]
    value = op.Cast(x, to=ir.DataType.FLOAT)
    axis = op.initializer(ir.tensor([-1], dtype=ir.DataType.INT64, name=f"{x.name}.axis"))
    top = op.ReduceMax(value, axis, keepdims=1)
    counts = [float(count) for count in range(length, 0, -1)]
    down = op.initializer(ir.tensor(counts, dtype=ir.DataType.FLOAT, name=f"{x.name}.down"))
    kept = op.Mul(op.Cast(op.Equal(value, top), to=ir.DataType.FLOAT), down)
    full = op.initializer(ir.tensor(float(length), dtype=ir.DataType.FLOAT, name=f"{x.name}.full"))
    return op.Cast(op.Sub(full, op.ReduceMax(kept, axis, keepdims=0)), to=ir.DataType.INT64)


ARG_MAX: Final = RewriteRuleSet([RewriteRule(_arg_max_pattern, _arg_max, name="ArgMax")])
