from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgediffusion.calls import Call, Savings, plan_calls
from edgediffusion.levels import Level
from edgediffusion.manifest import DEEP, PLAIN, SHALLOW

NOISE = [10.0, 5.0, 2.0, 1.0, 0.5, 0.1]
LEVELS = [Level(1.0, noise) for noise in NOISE]


def kinds(**savings: int) -> list[str]:
    return [call.kind for call in plan_calls(LEVELS, Savings(**savings), guided=True)]


def test_nothing_is_left_out_unless_it_was_asked_for() -> None:
    assert plan_calls(LEVELS, Savings(), guided=True) == (Call(guided=True),) * 6
    assert plan_calls(LEVELS, Savings(), guided=False) == (Call(guided=False),) * 6


def test_guidance_is_within_its_interval_the_upper_end_included() -> None:
    calls = plan_calls(LEVELS, Savings(guidance_interval=(0.5, 5.0)), guided=True)
    assert [call.guided for call in calls] == [False, True, True, True, False, False]


def test_an_interval_gives_no_guidance_to_a_run_without_it() -> None:
    calls = plan_calls(LEVELS, Savings(guidance_interval=(0.5, 5.0)), guided=False)
    assert not any(call.guided for call in calls)


def test_guidance_is_computed_every_so_many_calls_and_kept_between_them() -> None:
    calls = plan_calls(LEVELS, Savings(guidance_every=3), guided=True)
    assert [call.guided for call in calls] == [True, False, False] * 2
    assert [call.kept for call in calls] == [False, True, True] * 2
    assert not any(call.kept for call in plan_calls(LEVELS, Savings(guidance_every=3), False))


def test_nothing_is_kept_outside_of_the_interval() -> None:
    savings = Savings(guidance_interval=(0.5, 5.0), guidance_every=2)
    calls = plan_calls(LEVELS, savings, guided=True)
    assert [call.guided for call in calls] == [False, True, False, True, False, False]
    assert [call.kept for call in calls] == [False, False, True, False, False, False]


def test_a_level_without_signal_has_infinite_noise() -> None:
    pure = [Level(0.0, 1.0)]
    up_to_infinity = Savings(guidance_interval=(1.0, float("inf")))
    assert plan_calls(pure, up_to_infinity, guided=True)[0].guided
    assert not plan_calls(pure, Savings(guidance_interval=(1.0, 9e9)), guided=True)[0].guided


def test_deepcache_runs_all_of_the_unet_every_so_many_calls() -> None:
    assert kinds(deepcache_interval=3) == [DEEP, SHALLOW, SHALLOW] * 2
    assert kinds(deepcache_interval=1) == [PLAIN] * 6


def test_deepcache_begins_where_it_is_told_to() -> None:
    assert kinds(deepcache_interval=2, deepcache_start=3) == [DEEP] * 4 + [SHALLOW, DEEP]
    assert kinds(deepcache_interval=2, deepcache_start=9) == [DEEP] * 6


@given(
    noise=st.lists(st.floats(0.01, 100), max_size=30),
    low=st.floats(0, 10),
    width=st.floats(0.1, 50),
    every=st.integers(1, 4),
    interval=st.integers(2, 9),
    start=st.integers(0, 9),
)
def test_a_shallow_call_finds_features_of_the_rows_that_it_needs(
    noise: list[float], low: float, width: float, every: int, interval: int, start: int
) -> None:
    savings = Savings(
        guidance_interval=(low, low + width),
        guidance_every=every,
        deepcache_interval=interval,
        deepcache_start=start,
    )
    kept: Call | None = None
    was_guided = False
    for call in plan_calls([Level(1.0, n) for n in noise], savings, guided=True):
        was_guided |= call.guided
        assert was_guided or not call.kept
        if call.kind == DEEP:
            kept = call
        else:
            assert kept is not None
            assert kept.guided or not call.guided
