from __future__ import annotations

import numpy as np
import pytest

from edgediffusion_export.quantize.integers import (
    REDUCED_LEVELS,
    WEIGHT_LEVELS,
    Grid,
    quantize_weight,
)


@pytest.mark.parametrize("levels", [WEIGHT_LEVELS, REDUCED_LEVELS])
@pytest.mark.parametrize("axis", [0, 1])
def test_each_channel_of_a_weight_has_its_own_scale(axis: int, levels: int) -> None:
    weight = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    weight *= 10.0 ** np.arange(weight.shape[axis]).reshape((-1, 1) if axis == 0 else (1, -1))
    made = quantize_weight(weight.astype(np.float32), axis, levels)
    assert made.integers.dtype == np.int8
    assert np.abs(made.integers.astype(int)).max(axis=1 - axis).tolist() == [levels] * len(
        made.scales
    )
    scales = np.expand_dims(made.scales, 1 - axis)
    assert np.abs(made.integers * scales - weight).max(axis=1 - axis) == pytest.approx(
        made.scales / 2, rel=0.7
    )
    assert (np.abs(made.integers * scales - weight) <= scales * 0.5001).all()


def test_a_channel_of_zeros_stays_zero() -> None:
    weight = np.zeros((2, 3, 3, 3), np.float32)
    weight[1] = 1
    made = quantize_weight(weight, 0)
    assert made.integers[0].any() == np.False_
    assert made.scales.tolist() == [1, np.float32(1 / 127)]


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)])
def test_a_grid_holds_zero_exactly_and_all_between(low: float, high: float) -> None:
    grid = Grid.spanning(low, high)
    assert 0 <= grid.zero <= 255
    assert grid.round_trip(np.zeros(1, np.float32))[0] == 0
    values = np.linspace(low, high, 999, dtype=np.float32)
    assert np.abs(grid.round_trip(values) - values).max() <= 0.51 * grid.scale


def test_what_lies_outside_a_grid_is_clipped() -> None:
    grid = Grid.spanning(-1, 1)
    clipped = grid.round_trip(np.array([-9, 9], np.float32))
    assert clipped == pytest.approx([-1, 1], abs=grid.scale)
