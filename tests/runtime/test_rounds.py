from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from edgediffusion.engine import Arithmetic, Engine
from edgediffusion.manifest import GraphSpec, Parity, TensorSpec
from edgediffusion.rounds import measure


class Log:
    """Workloads that note when they ran, and may be interrupted."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.calls: list[str] = []
        self.interrupt_at = interrupt_at

    def __call__(self, name: str) -> Callable[[], None]:
        def run() -> None:
            self.calls.append(name)
            if len(self.calls) == self.interrupt_at:
                raise KeyboardInterrupt

        return run


def test_workloads_take_turns_and_the_first_round_warms_up() -> None:
    log = Log()
    samples = measure({name: log(name) for name in "abc"}, 3, rest_s=0)
    assert log.calls == [*"cab", *"abc", *"bca", *"cab"]
    assert {name: len(each) for name, each in samples.items()} == {"a": 3, "b": 3, "c": 3}


def test_samples_are_milliseconds_of_their_own_workload() -> None:
    from time import sleep

    samples = measure({"long": lambda: sleep(0.02), "short": lambda: None}, 2, rest_s=0)
    assert min(samples["long"]) >= 20
    assert max(samples["short"]) < min(samples["long"])


class SlowBackend:
    """A graph whose run takes a known time by a clock that only it moves."""

    arithmetic: Arithmetic = "fp32"

    def __init__(self, ms: float) -> None:
        self.ms, self.now = ms, 0

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        self.now += int(self.ms * 1e6)
        return [inputs["sample"]]

    def rest(self) -> None: ...

    def close(self) -> None:
        pass


@pytest.mark.parametrize("ms", [0.5, 7.0])
def test_an_engine_of_a_known_delay_is_timed_exactly(ms: float) -> None:
    sample = TensorSpec("sample", "float32", (1,))
    spec = GraphSpec(
        file="a.onnx", batch=1, precision="fp32", inputs=(sample,), outputs=(sample,),
        parity=Parity(0.0, 0.0, 1.0, 1), golden=(),
    )  # fmt: skip
    backend = SlowBackend(ms)
    engine = Engine(spec, "cpu", backend)
    call = lambda: engine(sample=np.zeros(1, np.float32))  # noqa: E731
    samples = measure({"unet": call}, 3, rest_s=0, clock=lambda: backend.now)
    assert samples == {"unet": [ms] * 3}


def test_another_clock_can_be_used() -> None:
    now = iter(range(0, 100_000_000, 3_000_000))
    assert measure({"a": lambda: None}, 2, rest_s=0, clock=lambda: next(now)) == {"a": [3.0, 3.0]}


def test_warm_up_rounds_are_thrown_away() -> None:
    log = Log()
    samples = measure({name: log(name) for name in "ab"}, 1, rest_s=0, warmup=2)
    assert log.calls == [*"ab", *"ba", *"ab"]
    assert {len(each) for each in samples.values()} == {1}
    log.calls.clear()
    measure({"a": log("a")}, 1, rest_s=0, warmup=0)
    assert log.calls == ["a"]


def test_the_anchor_is_sampled_at_every_turn() -> None:
    log, values = Log(), iter([9.0, 9.0, 9.0, 1.0, 5.0, 2.0, 3.0, 8.0, 4.0])
    samples = measure({name: log(name) for name in "abc"}, 2, rest_s=0, anchor=lambda: next(values))
    assert samples["anchor"] == [2.0, 4.0]
    assert set(samples) == {"a", "b", "c", "anchor"}


def test_an_interruption_keeps_the_whole_rounds() -> None:
    log, said = Log(interrupt_at=8), []
    samples = measure({name: log(name) for name in "abc"}, 9, said.append, rest_s=0)
    assert {len(each) for each in samples.values()} == {1}
    assert said[0] == "warm-up: c"
    assert said[3] == "round 1 of 9: a"
    assert said[-1] == "interrupted: the whole rounds are kept"


def test_an_interruption_before_the_first_round_goes_on() -> None:
    log = Log(interrupt_at=5)
    with pytest.raises(KeyboardInterrupt):
        measure({name: log(name) for name in "abc"}, 9, rest_s=0)
