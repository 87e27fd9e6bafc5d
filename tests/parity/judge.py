"""Run both sides of a row and judge: the same numbers, or as near to the exact ones as diffusers.

The bound is 1e-5 of the largest value, after every call of the model. A step that is further than
that from diffusers' float32 has to be at least as near as diffusers' float32 to diffusers' own
evaluation in double. In rows where diffusers' float32 itself leaves the bound around the double
result, steps may be as far from it as the bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tests.parity.ours import BOUND, distances, inputs, our_run
from tests.parity.reference import float32_run, float64_run
from tests.parity.rows import Row


@dataclass(frozen=True)
class Verdict:
    """How near we came.

    error : largest difference to what the row was judged against, of the largest value.
    step : the call of the model after which it was so large.
    passes : whether that is near enough.
    against : ``float32``: diffusers as it is. ``float64``: diffusers in double, because its float32
        leaves the bound around that. ``nearer``: diffusers in double too; its float32 is within the
        bound, ours is nearer, yet the two are further than the bound from one another.
    theirs : the same error of diffusers' float32, where the row was judged against double.
    first : the first call after which we were not near enough.
    """

    error: float
    step: int
    passes: bool
    against: Literal["float32", "float64", "nearer"] = "float32"
    theirs: float | None = None
    first: int | None = None


def judge(row: Row) -> Verdict:
    """Run a row on both sides."""
    noise, clean = inputs(row)
    ours = our_run(row, noise, clean)
    single, drawn = float32_run(row, noise, clean)
    if len(ours) != len(single):
        return Verdict(float("inf"), 0, passes=False, first=0)
    apart = distances(ours, single)
    if max(apart) <= BOUND:
        return Verdict(max(apart), int(np.argmax(apart)), passes=True)
    double = float64_run(row, noise, clean, drawn)
    own, theirs = distances(ours, double), distances(single, double)
    rough = max(theirs) > BOUND
    too_far = (
        i
        for i, (between, a, b) in enumerate(zip(apart, own, theirs, strict=True))
        if between > BOUND and a > (max(b, BOUND) if rough else b)
    )
    first = next(too_far, None)
    return Verdict(
        error=max(own),
        step=int(np.argmax(own)),
        passes=first is None,
        against="float64" if rough else "nearer",
        theirs=max(theirs),
        first=first,
    )
