"""The public names are a promise: listed, sorted, documented."""

from __future__ import annotations

import inspect
import types

import edgediffusion as ed


def test_all_lists_exactly_the_public_names() -> None:
    public = {
        name
        for name, value in vars(ed).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert set(ed.__all__) == public | {"__version__"}
    assert len(set(ed.__all__)) == len(ed.__all__)


def test_every_error_is_in_the_tree() -> None:
    errors = [v for v in vars(ed).values() if inspect.isclass(v) and issubclass(v, Exception)]
    assert len(errors) == 15
    assert all(issubclass(error, ed.EdgeDiffusionError) for error in errors)


def test_everything_public_has_a_docstring() -> None:
    for name in ed.__all__:
        value = getattr(ed, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name


def test_the_names_of_the_design_are_there() -> None:
    for name in ("Pipeline", "Request", "randn", "schedule_from_config", "sample"):
        assert name in ed.__all__
    for name in ("open", "generate", "stream", "embed", "cancel", "close"):
        assert callable(getattr(ed.Pipeline, name))
