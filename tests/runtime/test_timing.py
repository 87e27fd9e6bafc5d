from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from edgediffusion.timing import Stopwatch, Timings, summarize, time_call


class FakeClock:
    """A clock in nanoseconds that moves only when told to."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def work(self, ms: float) -> Callable[[], None]:
        def run() -> None:
            self.now += int(ms * 1e6)

        return run


def test_a_stage_adds_up_over_its_blocks() -> None:
    clock = FakeClock()
    watch = Stopwatch(clock)
    for ms in (3, 4):
        with watch("load"):
            clock.work(ms)()
    assert watch.stages == {"load": 7.0}


def test_laps_leave_out_what_the_consumer_does() -> None:
    clock = FakeClock()
    watch = Stopwatch(clock)

    def steps() -> Iterator[int]:
        for i in range(3):
            clock.work(10 + i)()
            yield i

    for _ in watch.each(steps()):
        clock.work(1000)()
    assert watch.laps == [10.0, 11.0, 12.0]


def test_a_failing_stage_is_timed_too() -> None:
    clock = FakeClock()
    watch = Stopwatch(clock)
    with suppress(RuntimeError), watch("decode"):
        clock.work(5)()
        raise RuntimeError
    assert watch.stages["decode"] == 5.0


def test_the_runtimes_own_share_is_what_the_engine_did_not_take() -> None:
    timings = Timings(stages={"load": 1.0}, step=(10.0, 10.0), unet=(9.0, 9.5))
    assert timings.own_share == pytest.approx(0.075)
    assert timings.total == 21.0


def test_time_call_reads_known_delays() -> None:
    clock = FakeClock()
    assert [time_call(clock.work(ms), clock) for ms in (1, 2.5, 0)] == [1.0, 2.5, 0.0]


def test_the_summary_of_known_samples() -> None:
    s = summarize([5, 1, 2, 3, 4, 11, 6, 7, 8, 9, 10])
    assert (s.median, s.p90, s.min, s.count) == (6, 10, 1, 11)
    assert summarize([2.0]).p90 == 2.0


def test_no_samples_cannot_be_summarized() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarize([])
