from __future__ import annotations

import pytest
import torch

from edgediffusion_export.precision import LEAST_LEFT, Overflow, find_overflow


class Block(torch.nn.Module):
    """A linear layer, then a norm that brings any scale back to one."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.grow = torch.nn.Linear(4, 4, bias=False)
        self.norm = torch.nn.LayerNorm(4)
        torch.nn.init.eye_(self.grow.weight)
        self.grow.weight.data *= scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.grow(x))


class Residual(torch.nn.Module):
    """A sum that is too large beside a layer that is."""

    def __init__(self) -> None:
        super().__init__()
        self.grow = torch.nn.Linear(4, 4, bias=False)
        self.grow.weight.data = 40_000 * torch.eye(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.grow(x)


class Attention(torch.nn.Module):
    """Small inputs, small outputs, and scores between them."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def found(module: torch.nn.Module, *inputs: torch.Tensor) -> Overflow | None:
    def run() -> float:
        module(*inputs)
        return 0.0

    return find_overflow(module.eval(), run)


def test_small_activations_pass() -> None:
    assert found(Block(1000), torch.ones(1, 4)) is None


@pytest.mark.parametrize("scale", [40_000.0, 60_000.0])
def test_an_overflow_inside_is_found_and_named(scale: float) -> None:
    module = torch.nn.Sequential(Block(1), Block(scale))
    overflow = found(module, torch.arange(4.0)[None] + 1)
    assert overflow is not None
    assert list(overflow.peaks) == ["1.grow", "1.norm"]
    assert overflow.peaks["1.grow"] == pytest.approx(scale * 1.3416, rel=1e-3)
    assert (overflow.layers, overflow.left) == (4, 0.5)


def test_what_takes_too_much_is_found_beside_what_gives_it() -> None:
    overflow = found(torch.nn.Sequential(Residual(), torch.nn.LayerNorm(4)), torch.ones(1, 4))
    assert overflow is not None
    assert overflow.peaks == {"0": 40_001.0, "0.grow": 40_000.0, "1": 40_001.0}


def test_the_notes_name_the_first_layers_and_count_the_rest() -> None:
    one = Overflow({"conv": 7e4}, layers=9, left=0.5)
    assert str(one) == "conv reaches 7e+04, float16 ends at 65504 (with headroom 2)"
    assert one.note_of_mixed() == (
        f"1 of 9 layers compute in float32: {one}; the others, with 50% of the multiplications, "
        "compute in float16"
    )
    assert one.note_of_whole("why") == f"computes in float32: {one}; why"
    many = Overflow({"": 7e4, "a": 1e5, "b": float("inf"), "c": 7e4, "d": 7e4}, 9, LEAST_LEFT - 0.1)
    assert str(many).startswith(
        "the network itself reaches 7e+04, a reaches 1e+05, b reaches inf and 2 more, float16 ends"
    )
    assert one.leaves_enough
    assert not many.leaves_enough
    assert many.note_of_whole().endswith("; 15% of the multiplications would be left to float16")


def test_the_half_module_agrees() -> None:
    module, x = Block(60_000), torch.arange(4.0)[None] + 1
    assert found(module, x) is not None
    assert not torch.isfinite(module.half()(x.half())).all()


def test_headroom_is_left() -> None:
    assert found(Block(32_000), torch.ones(1, 4)) is None
    assert found(Block(34_000), torch.ones(1, 4)) is not None


def test_a_weight_that_float16_cannot_hold_is_named() -> None:
    module = Block(1)
    module.norm.weight.data[0] = 70_000
    overflow = found(module, torch.zeros(1, 4))
    assert overflow == Overflow({"norm.weight": 70_000}, layers=1, left=0.0)


def test_what_a_half_graph_cannot_take_or_give_leaves_nothing() -> None:
    overflow = find_overflow(Block(1), lambda: 40_000.0)
    assert overflow == Overflow({"an input or output": 40_000}, layers=1, left=0.0)
    assert find_overflow(Block(1), lambda: 30_000.0) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_an_overflow(bad: float) -> None:
    overflow = found(Block(1), torch.full((1, 4), bad))
    assert overflow is not None
    assert overflow.peaks["grow"] == float("inf")


def test_attention_scores_count() -> None:
    overflow = found(Attention(), torch.full((1, 1, 8, 16), 300.0))
    assert overflow is not None
    assert overflow.peaks == {"": pytest.approx(300 * 300 * 4)}


def test_masks_do_not_count() -> None:
    x = torch.ones(1, 1, 8, 16)
    lowest = torch.full((8, 8), torch.finfo(torch.float32).min).triu(1)
    assert found(Attention(), x, lowest) is None
    assert found(Attention(), x, lowest == 0) is None


def test_the_hooks_are_gone_afterwards() -> None:
    module = Block(1)
    found(module, torch.ones(1, 4))
    assert not module.grow._forward_hooks
    assert not module.grow._forward_pre_hooks
