import hashlib
import itertools

import numpy as np
import pytest
import scenes


def test_a_seed_draws_the_same_scenes_and_pictures_for_ever():
    drawn = list(scenes.scenes(0, 0, 20))
    assert drawn == [scenes.draw_scene(scenes.rng(0, i)) for i in range(20)]
    pixels = b"".join(scenes.render(scene).tobytes() for scene in drawn[:4])
    captions = [str(scenes.draw_caption(scene, scenes.rng(1, i))) for i, scene in enumerate(drawn)]
    assert captions[:3] == EXPECTED_CAPTIONS
    assert hashlib.sha256(pixels).hexdigest()[:16] == EXPECTED_PIXELS


EXPECTED_CAPTIONS = [
    "a small black square right of a red square on a green background",
    "a small black cross on a yellow background",
    "a large purple square right of a red square on an orange background",
]
EXPECTED_PIXELS = "c5bf0f269a486e1b"


def test_held_out_shares_are_10_and_20_percent():
    pairs = [pair for pair in itertools.permutations(scenes.KINDS, 2) if scenes.is_held_out(pair)]
    assert len(scenes.HELD_OUT_SINGLES) / len(scenes.KINDS) == pytest.approx(0.1, abs=0.01)
    assert len(pairs) / (32 * 31) == pytest.approx(0.2, abs=0.001)
    assert {(b, a) for a, b in pairs} == set(pairs)


@pytest.mark.parametrize("held_out", [False, True])
def test_training_never_draws_held_out_combinations(held_out):
    for scene in scenes.scenes(3, 0, 3000, held_out=held_out):
        assert scenes.is_held_out(tuple(thing.kind for thing in scene.things)) == held_out


def test_scenes_keep_their_promises():
    for scene in scenes.scenes(4, 0, 2000):
        assert all(thing.colour != scene.background for thing in scene.things)
        for thing in scene.things:
            low, high = scenes.RADIUS[thing.size]
            assert low <= thing.radius <= high
            assert min(thing.x, thing.y) >= thing.radius + 1.9
            assert max(thing.x, thing.y) <= 128 - thing.radius - 1.9
        if scene.relation:
            a, b = scene.things
            along, across = abs(a.x - b.x), abs(a.y - b.y)
            if scene.relation in ("above", "below"):
                along, across = across, along
            assert along >= a.radius + b.radius + scenes.GAP - 1e-6
            assert across <= 16


def test_captions_drop_words_and_mirror():
    scene = scenes.Scene(
        (
            scenes.Thing("circle", "red", "small", 64, 30, 14),
            scenes.Thing("square", "blue", "large", 64, 90, 25),
        ),
        "white",
        "above",
    )
    full = scenes.full_caption(scene)
    assert str(full) == "a small red circle above a large blue square on a white background"
    assert str(scenes.mirrored(full)) == (
        "a large blue square below a small red circle on a white background"
    )
    drawn = {str(scenes.draw_caption(scene, scenes.rng(i))) for i in range(2000)}
    assert {"a red circle and a blue square", str(full), str(scenes.mirrored(full))} <= drawn
    orange = scenes.Caption((scenes.Claim("circle", "orange"),), background="orange")
    assert str(orange) == "an orange circle on an orange background"


def test_rendering_is_the_palette_with_smooth_edges():
    scene = next(scenes.scenes(0, 0, 1))
    picture = scenes.render(scene)
    assert picture.shape == (128, 128, 3)
    assert picture.dtype == np.uint8
    assert tuple(picture[0, 0]) == scenes.PALETTE[scene.background]
    for thing in scene.things:
        middle = picture[round(thing.y), round(thing.x)]
        assert tuple(middle) == scenes.PALETTE[thing.colour]


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_coverage_has_the_area_of_the_shape(shape):
    area = {"circle": np.pi, "square": 3.24, "triangle": 1.8, "cross": 2.3616}[shape] * 20**2
    assert scenes.coverage(shape, 64.3, 63.8, 20).sum() == pytest.approx(area, rel=0.01)
