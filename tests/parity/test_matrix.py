"""The parity matrix: our trajectories against diffusers', row by row.

A part of it: ``pytest tests/parity -k "heun and karras"``.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="compares against diffusers")

from tests.other_roundings import PARITY_ROWS, on_amd
from tests.parity.judge import Verdict, judge
from tests.parity.matrix import MATRIX, everything, matrix, refused
from tests.parity.ours import inputs
from tests.parity.reference import float32_run
from tests.parity.refused import (
    NOT_FINITE,
    REFUSALS,
    refusal,
)
from tests.parity.rows import Row

# diffusers 0.42.1 hands tensors to NumPy in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


def parameters(rows: list[Row]) -> list[Any]:
    """Each row as a test, named."""
    return [
        pytest.param(row, id=str(row), marks=[on_amd] if str(row) in PARITY_ROWS else [])
        for row in rows
    ]


def told(row: Row, verdict: Verdict) -> str:
    """Say how a row failed."""
    theirs = f", diffusers' own float32 {verdict.theirs:.1e}" if verdict.theirs else ""
    return (
        f"{row}: {verdict.error:.1e} from diffusers' {verdict.against} after call {verdict.step}"
        f"{theirs}; first too far after call {verdict.first}; configuration {row.config}, "
        f"arguments {row.arguments}, strength {row.strength}"
    )


def outcome(row: Row) -> str:
    """Run diffusers: the name of its exception, or whether the trajectory is finite."""
    try:
        latents, _ = float32_run(row, *inputs(row))
    except Exception as error:  # whatever it is, the data has its name
        return type(error).__name__
    return "finite" if all(np.isfinite(x).all() for x in latents) else NOT_FINITE


@pytest.mark.parametrize("row", parameters(matrix()))
def test_parity(row: Row) -> None:
    if row.sampler == "dpmpp_sde":
        pytest.importorskip("torchsde", reason="diffusers' DPMSolverSDE draws from torchsde")
    verdict = judge(row)
    assert verdict.passes, told(row, verdict)


@pytest.mark.parametrize("row", parameters(refused()))
def test_diffusers_refuses(row: Row) -> None:
    known = refusal(row)
    assert known is not None
    assert outcome(row) == known.error, f"diffusers no longer fails so: {known.reason}"


def test_every_refusal_is_of_a_row() -> None:
    assert all(any(each.holds(row) for row in refused()) for each in REFUSALS)


@pytest.mark.parametrize("class_name", sorted(MATRIX))
def test_every_option_of_the_class_has_a_row(class_name: str) -> None:
    import diffusers

    options = inspect.signature(getattr(diffusers, class_name).__init__).parameters.keys()
    rows = [row for row in everything() if row.class_name == class_name]
    assert options - NOT_TRIED <= {key for row in rows for key in row.config}, class_name


# Options without a row, and why.
NOT_TRIED = {
    "self",
    "solver_p",  # another scheduler's object, in no JSON
    "tau_func",  # a function, in no JSON
}
