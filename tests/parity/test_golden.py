"""Our trajectories against diffusers' as recorded in tests/golden: needs NumPy alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from safetensors import safe_open

from edgediffusion.samplers import SOLVERS
from tests.golden.make_scheduler_golden import BATCH, FILE, SIZE
from tests.parity.ours import BOUND, distances, inputs, our_run
from tests.parity.rows import Row


def recorded() -> Iterator[tuple[str, Row]]:
    """The recorded rows."""
    with safe_open(FILE, framework="numpy") as golden:
        for name, row in json.loads(golden.metadata()["cases"]).items():
            yield name, Row(**row)


@pytest.mark.parametrize(
    ("name", "row"), [pytest.param(name, row, id=name) for name, row in recorded()]
)
def test_golden_trajectory(name: str, row: Row) -> None:
    with safe_open(FILE, framework="numpy") as golden:
        expected: list[Any] = list(golden.get_tensor(name))
    assert max(distances(our_run(row, *inputs(row, BATCH, SIZE)), expected)) <= BOUND


def test_every_class_is_recorded() -> None:
    assert {row.class_name for _, row in recorded()} == SOLVERS.keys()
