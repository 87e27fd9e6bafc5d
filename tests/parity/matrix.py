"""The parity matrix: every diffusers scheduler that we have, option by option.

A class has a base configuration and grids. A grid gives for some options the values that are
tried; its rows are all their combinations. A new option of a class is a new grid of its family, or
a new value in one. What diffusers itself refuses is taken out by `tests.parity.refused`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.parity import families_continuous, families_sigma, families_solver, families_whole
from tests.parity.grids import Family
from tests.parity.refused import refusal
from tests.parity.rows import Row, rows_of

MATRIX: Final[Mapping[str, Family]] = {
    **families_whole.FAMILIES,
    **families_sigma.FAMILIES,
    **families_solver.FAMILIES,
    **families_continuous.FAMILIES,
}


def everything() -> list[Row]:
    """All rows, those among them that diffusers refuses."""
    return [
        row
        for class_name, (sampler, base, grids) in MATRIX.items()
        for row in rows_of(sampler, class_name, base, [{}, *grids])
    ]


def matrix() -> list[Row]:
    """The rows that diffusers can run."""
    return [row for row in everything() if refusal(row) is None]


def refused() -> list[Row]:
    """The rows that diffusers cannot run."""
    return [row for row in everything() if refusal(row) is not None]
