from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediffusion.calls import Call
from edgediffusion.denoiser import Denoiser
from edgediffusion.manifest import DEEP, PLAIN, SHALLOW

NEGATIVE, POSITIVE = 1.0, 5.0
ROWS = {"encoder_hidden_states": np.array([NEGATIVE, POSITIVE], np.float32)}
SAMPLE = np.stack([np.full((1, 2, 2), 10.0, np.float32), np.full((1, 2, 2), 20.0, np.float32)])


class FakeUnet:
    """Predicts the text's row plus the image; remembers what it was given."""

    def __init__(self, *, deep: bool = False) -> None:
        self.spent_ms = 0.0
        self.deep = deep
        self.features: list[list[float]] = []

    def __call__(self, image: Any, timestep: float, **rows: NDArray[Any]) -> dict[str, Any]:
        self.spent_ms += 2.0
        text = rows["encoder_hidden_states"]
        if "deep_features" in rows:
            self.features.append(rows["deep_features"].tolist())
        outputs = {"out_sample": image[None] + text[:, None, None, None]}
        return outputs | ({"deep_features": text + image.max()} if self.deep else {})


def denoiser(calls: list[Call], **unets: Any) -> Denoiser:
    return Denoiser(unets, calls, ROWS, guidance=3.0)


def test_guidance_goes_from_the_negative_prediction_beyond_the_positive_one() -> None:
    guided = denoiser([Call(guided=True)], plain=FakeUnet())(SAMPLE, 1.0)
    expected = NEGATIVE + 3.0 * (POSITIVE - NEGATIVE)
    np.testing.assert_array_equal(guided[:, 0, 0, 0], [10 + expected, 20 + expected])
    assert guided.dtype == np.float32


def test_a_call_without_guidance_is_the_positive_prediction() -> None:
    run = denoiser([Call(guided=False), Call(guided=True)], plain=FakeUnet())
    np.testing.assert_array_equal(run(SAMPLE, 2.0), SAMPLE + POSITIVE)
    assert not np.array_equal(run(SAMPLE, 1.0), SAMPLE + POSITIVE)


def test_a_call_that_keeps_guidance_adds_that_of_the_last_guided_one() -> None:
    class Changing(FakeUnet):
        """The negative prediction grows by 1 with each timestep down."""

        def __call__(self, image: Any, timestep: float, **rows: NDArray[Any]) -> dict[str, Any]:
            text = rows["encoder_hidden_states"].copy()
            text[text == NEGATIVE] += 3.0 - timestep
            return super().__call__(image, timestep, encoder_hidden_states=text)

    calls = [Call(True), Call(False, kept=True), Call(True), Call(False, kept=True), Call(False)]
    run = denoiser(calls, plain=Changing())
    seen = [float(run(SAMPLE, timestep)[1].max()) for timestep in (3.0, 2.0, 1.0, 0.0, -1.0)]
    first, second = POSITIVE - NEGATIVE, POSITIVE - NEGATIVE - 2
    above = [2 * first, 2 * first, 2 * second, 2 * second, 0]
    assert seen == [20 + POSITIVE + each for each in above]


def test_the_engines_time_is_counted_by_call() -> None:
    run = denoiser([Call(guided=True, kind=PLAIN)] * 2, plain=FakeUnet())
    run(SAMPLE, 2.0)
    run(SAMPLE, 1.0)
    assert run.engine_ms == [4.0, 4.0]  # two images each


def test_a_shallow_call_gets_the_features_of_its_own_image() -> None:
    shallow = FakeUnet()
    calls = [Call(True, DEEP), Call(True, SHALLOW), Call(False, SHALLOW)]
    run = denoiser(calls, deep=FakeUnet(deep=True), shallow=shallow)
    for timestep in (3.0, 2.0, 1.0):
        run(SAMPLE, timestep)
    first, second = [NEGATIVE + 10, POSITIVE + 10], [NEGATIVE + 20, POSITIVE + 20]
    assert shallow.features == [first, second, first[1:], second[1:]]


def test_rescaling_brings_the_spread_of_the_prediction_back() -> None:
    image = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)

    class Spread(FakeUnet):
        def __call__(self, image: Any, timestep: float, **rows: NDArray[Any]) -> dict[str, Any]:
            text = rows["encoder_hidden_states"]
            return {"out_sample": image[None] * text[:, None, None, None]}

    run = Denoiser({PLAIN: Spread()}, [Call(guided=True)], ROWS, 3.0, rescale=1.0)  # type: ignore[dict-item]
    assert np.isclose(run(image, 1.0).std(), POSITIVE * image.std())
