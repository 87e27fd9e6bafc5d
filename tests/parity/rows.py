"""Rows of the parity matrix: what is run, and how a grid of options becomes rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final

STEPS: Final = (5, 20, 50)
# Arguments of diffusers' step() and set_timesteps(); all other options are the configuration's.
STEP_ARGUMENTS: Final = frozenset({"eta"})
LAYOUT_ARGUMENTS: Final = frozenset({"mu"})
# What a row asks for besides options: the visits, as both sides' callers name them.
VISITS: Final = frozenset({"steps", "timesteps", "sigmas", "strength"})

Grid = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, eq=False)
class Row:
    """One run: a scheduler's class, its options, and which noise levels to visit.

    sampler : our name for the class.
    options : what differs from the base configuration, as diffusers names it; arguments of
        diffusers' step() and of its set_timesteps() among them.
    base : the base configuration.
    steps : how many steps; for listed timesteps or sigmas as many as are listed.
    lists : ``timesteps`` or ``sigmas``, where they are listed.
    """

    sampler: str
    class_name: str
    options: Mapping[str, Any]
    steps: int
    base: Mapping[str, Any] = field(default_factory=dict)
    lists: Mapping[str, Sequence[float]] = field(default_factory=dict)
    strength: float = 1.0

    def __str__(self) -> str:
        """Name the row: a test id."""
        parts = [f"{key}={_short(value)}" for key, value in self.options.items()]
        parts += [f"listed_{key}" for key in self.lists]
        parts += [f"strength={self.strength}"] if self.strength < 1 else []
        return f"{self.sampler}-{','.join(parts) or 'base'}-{self.steps}"

    @property
    def config(self) -> dict[str, Any]:
        """The row's scheduler_config.json."""
        arguments = STEP_ARGUMENTS | LAYOUT_ARGUMENTS
        own = {key: value for key, value in self.options.items() if key not in arguments}
        return {"_class_name": self.class_name, **self.base, **own}

    @property
    def arguments(self) -> dict[str, Any]:
        """What is not in the configuration: arguments of diffusers' methods, options of ours."""
        return {key: value for key, value in self.options.items() if key not in self.config}

    @property
    def visits(self) -> dict[str, Any]:
        """What diffusers' set_timesteps is asked for."""
        return dict(self.lists) or {"num_inference_steps": self.steps}

    @property
    def learns_variance(self) -> bool:
        """Whether the model returns a variance too, in as many channels again."""
        return str(self.config.get("variance_type")).startswith("learned")


def _short(value: Any) -> str:
    """Write an option's value into a name."""
    if callable(value):
        return str(getattr(value, "__name__", "function"))
    return f"list{len(value)}" if isinstance(value, list) and len(value) > 4 else str(value)


def expand(grid: Grid) -> Iterator[dict[str, Any]]:
    """Every combination of the values in a grid."""
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def rows_of(
    sampler: str, class_name: str, base: Mapping[str, Any], grids: Sequence[Grid]
) -> Iterator[Row]:
    """Make a class's rows, each once: every combination of each grid, at every number of steps."""
    seen = set()
    for grid in grids:
        for wish in expand({"steps": STEPS, **grid}):
            options = {k: v for k, v in wish.items() if k not in VISITS and _differs(k, v, base)}
            lists = {k: v(wish["steps"]) for k, v in wish.items() if k in ("timesteps", "sigmas")}
            row = Row(
                sampler=sampler,
                class_name=class_name,
                options=dict(sorted(options.items())),
                steps=wish["steps"],
                base=base,
                lists=lists,
                strength=wish.get("strength", 1.0),
            )
            if str(row) not in seen:
                seen.add(str(row))
                yield row


def _differs(key: str, value: Any, base: Mapping[str, Any]) -> bool:
    return key not in base or base[key] != value
