import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.paired import (
    LEAST_ROUNDS,
    Estimate,
    Verdict,
    change,
    estimate,
    judge,
    ratios,
)

times = st.floats(1e-3, 1e6)
series = st.lists(times, min_size=1, max_size=40)


def noisy(rng: np.random.Generator, rounds: int, spread: float, scale: float = 1.0) -> list[float]:
    """A series of rounds that share no luck."""
    return [float(each) for each in scale * rng.lognormal(0, spread, rounds)]


# --- ratios ---------------------------------------------------------------------------------------


def test_ratios_are_taken_round_by_round() -> None:
    assert ratios([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == [2.0, 3.0, 4.0]


def test_a_round_that_lacks_one_of_the_two_is_left_out() -> None:
    assert ratios([2.0, None, 8.0, 5.0], [1.0, 3.0, None, 2.0]) == [2.0, 2.5]


def test_series_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 and 2 rounds, expected series of the same rounds"):
        ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_impossible_times_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"got a sample of {bad}, expected a positive, finite"):
        ratios([1.0, bad], [1.0, 1.0])


@given(st.lists(st.tuples(times, times, times), min_size=LEAST_ROUNDS, max_size=30))
def test_the_speed_of_the_machine_cancels_out(rounds: list[tuple[float, float, float]]) -> None:
    mine, other, speed = zip(*rounds, strict=True)
    slowed = ([a * s for a, s in zip(x, speed, strict=True)] for x in (mine, other))
    assert ratios(*slowed) == pytest.approx(ratios(mine, other))


# --- estimates ------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(series)
def test_an_interval_holds_its_median_and_stays_within_the_samples(samples: list[float]) -> None:
    found = estimate(samples)
    assert found.low <= found.median <= found.high
    assert found.count == len(samples)
    if found.count >= LEAST_ROUNDS:
        assert min(samples) <= found.low <= found.high <= max(samples)
    else:
        assert (found.low, found.high) == (0, math.inf)


@settings(max_examples=50)
@given(series, times)
def test_an_estimate_scales_with_its_samples(samples: list[float], scale: float) -> None:
    found, scaled = estimate(samples), estimate([scale * each for each in samples])
    for name in ("median", "low", "high"):
        assert getattr(scaled, name) == pytest.approx(scale * getattr(found, name))


@settings(max_examples=50)
@given(series)
def test_the_same_samples_give_the_same_interval(samples: list[float]) -> None:
    assert estimate(samples) == estimate(list(samples))


def test_equal_samples_are_known_exactly() -> None:
    assert estimate([3.0] * 8) == Estimate(3.0, 3.0, 3.0, 8)


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        estimate([])


def test_an_interval_shrinks_with_the_square_root_of_the_rounds() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for rounds in (25, 100, 400):
        found = [estimate(noisy(rng, rounds, 0.1)) for _ in range(40)]
        widths.append(np.mean([each.high - each.low for each in found]))
    for wide, narrow in pairwise(widths):
        assert wide / narrow == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize("rounds", [LEAST_ROUNDS, 10, 20, 40])
def test_nineteen_of_twenty_intervals_hold_the_true_median(rounds: int) -> None:
    rng = np.random.default_rng(1)
    found = [estimate(noisy(rng, rounds, 0.1)) for _ in range(300)]
    assert sum(each.low <= 1 <= each.high for each in found) / 300 > 0.92


def drifting(rng: np.random.Generator, rounds: int, correlation: float) -> list[float]:
    """A series in which every round is correlated with the next."""
    values = [rng.normal()]
    for _ in range(rounds - 1):
        fresh = math.sqrt(1 - correlation**2) * rng.normal()
        values.append(correlation * values[-1] + fresh)
    return [math.exp(0.1 * value) for value in values]


def test_intervals_are_wider_where_rounds_share_their_luck() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(300):
        found = change(drifting(rng, 20, 0.6), drifting(rng, 20, 0.6))
        held += found.low <= 1 <= found.high
    assert held / 300 > 0.88  # a bootstrap of single rounds holds it 78 times of 100
    shuffled = drifting(rng, 400, 0.8)
    known = estimate(shuffled)
    rng.shuffle(shuffled)
    mixed = estimate(shuffled)
    assert known.high - known.low > 2 * (mixed.high - mixed.low)


# --- changes and verdicts -------------------------------------------------------------------------


def test_a_change_is_the_ratio_of_the_medians() -> None:
    assert change([2.0] * 6, [3.0] * 9) == Estimate(1.5, 1.5, 1.5, 6)


@settings(max_examples=50)
@given(series, series)
def test_a_change_back_is_the_inverse(old: list[float], new: list[float]) -> None:
    there, back = change(old, new), change(new, old)
    assert there.median * back.median == pytest.approx(1)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((1.06, 1.20), Verdict.REGRESSION),
        ((1.04, 1.20), Verdict.NOISY),
        ((0.80, 1.20), Verdict.NOISY),
        ((0.0, math.inf), Verdict.NOISY),
        ((1.01, 1.05), Verdict.OK),
        ((0.98, 1.02), Verdict.OK),
        ((0.80, 0.99), Verdict.FASTER),
    ],
)
def test_a_verdict_needs_the_whole_interval(
    interval: tuple[float, float], verdict: Verdict
) -> None:
    assert judge(Estimate(1.0, *interval, 20), 0.05) == verdict


def verdicts(true_ratio: float, spread: float, rounds: int) -> list[Verdict]:
    """Judgements of 200 pairs of runs whose true ratio is known, with a limit of 5 %."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(200):
        old, new = noisy(rng, rounds, spread), noisy(rng, rounds, spread, true_ratio)
        found.append(judge(change(old, new), 0.05))
    return found


def test_a_true_regression_is_found() -> None:
    assert verdicts(1.10, 0.02, 20).count(Verdict.REGRESSION) > 190


def test_no_change_is_hardly_ever_called_a_regression() -> None:
    assert verdicts(1.0, 0.02, 10).count(Verdict.REGRESSION) == 0
    # where the limit is small beside the noise, one in forty is the price of 95 % intervals
    assert verdicts(1.0, 0.5, 10).count(Verdict.REGRESSION) <= 8


def test_a_change_at_the_limit_is_called_one_in_forty_times_at_most() -> None:
    assert verdicts(1.05, 0.05, 20).count(Verdict.REGRESSION) <= 8


def test_noise_is_not_called_ok() -> None:
    found = verdicts(1.10, 0.5, 10)
    assert found.count(Verdict.OK) <= 10
    assert found.count(Verdict.NOISY) > 150


def test_too_few_rounds_never_conclude() -> None:
    assert judge(change([1.0] * (LEAST_ROUNDS - 1), [2.0] * 20), 0.05) == Verdict.NOISY


def test_an_estimate_says_its_interval() -> None:
    assert str(Estimate(1.234, 1.1, 1.3, 9)) == "1.23 (1.1 to 1.3)"
    assert str(Estimate(1.234, 0, math.inf, 2)) == "1.23 (too few rounds)"
