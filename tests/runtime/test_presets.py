from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import edgediffusion as ed
from edgediffusion.presets import PRESETS
from edgediffusion.request import plan_request, request_from_recipe

FAST = PRESETS["fast"]


def test_a_preset_fills_what_the_request_leaves_open(demo: Path) -> None:
    plan = plan_request(ed.Request(preset="fast"), ed.Bundle.open(demo))
    assert (plan.steps, plan.sampler) == (FAST["steps"], FAST["sampler"])
    assert plan.savings.guidance_interval == FAST["guidance_interval"]


@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        ({"steps": 3}, ("steps", 3)),
        ({"sampler": "euler"}, ("sampler", "euler")),
        ({"decoder": "tiny"}, ("decoder", "vae_tiny_decoder")),
    ],
)
def test_what_the_request_says_itself_stays(
    demo: Path, asked: dict[str, Any], seen: tuple[str, Any]
) -> None:
    plan = plan_request(ed.Request(preset="fast", **asked), ed.Bundle.open(demo))
    assert getattr(plan, seen[0]) == seen[1]


def test_an_unknown_preset_is_refused_with_the_near_one(demo: Path) -> None:
    with pytest.raises(ed.RequestError, match=r"unknown preset 'fats': did you mean fast\?"):
        plan_request(ed.Request(preset="fats"), ed.Bundle.open(demo))


def test_a_picture_keeps_the_fields_and_not_the_preset(pipe: ed.Pipeline) -> None:
    made = pipe.generate(ed.Request(prompt="a red circle", seed=1, preset="fast"))
    assert made.request.preset is None
    assert made.request.steps == FAST["steps"]
    again = pipe.generate(request_from_recipe(made.recipe()["request"]))
    assert (again.images == made.images).all()
