import numpy as np
import pytest
from judge import judge, see
from scenes import draw_caption, full_caption, render, rng, scenes

COUNT = 1000


@pytest.fixture(scope="module")
def truth():
    drawn = list(scenes(11, 0, COUNT // 2)) + list(scenes(11, 0, COUNT // 2, held_out=True))
    return [(scene, render(scene)) for scene in drawn]


def test_ground_truth_is_accepted(truth):
    right = sum(all(judge(picture, full_caption(scene)).values()) for scene, picture in truth)
    assert right >= 0.99 * COUNT


def test_shortened_captions_name_fewer_attributes(truth):
    for i, (scene, picture) in enumerate(truth[:200]):
        caption = draw_caption(scene, rng(12, i))
        verdict = judge(picture, caption)
        assert all(verdict.values())
        assert ("relation" in verdict) == (caption.relation is not None)
        assert ("background" in verdict) == (caption.background is not None)
        assert ("size" in verdict) == any(claim.size for claim in caption.claims)


def test_captions_of_other_pictures_are_rejected(truth):
    truth = truth[350:650]
    others = [full_caption(scene) for scene, _ in truth[1:]]
    wrong = [
        all(judge(picture, caption).values())
        for (scene, picture), caption in zip(truth, others, strict=False)
        if caption != full_caption(scene)
    ]
    assert sum(wrong) <= 0.01 * len(wrong)


@pytest.mark.parametrize("attribute", ["shape", "colour", "size", "relation", "background"])
def test_one_wrong_word_fails_that_attribute(truth, attribute):
    from dataclasses import replace

    def other(caption):
        first, *rest = caption.claims
        if attribute == "relation":
            swap = {
                "above": "left of",
                "below": "right of",
                "left of": "above",
                "right of": "below",
            }
            return replace(caption, relation=swap[caption.relation])
        if attribute == "background":
            return replace(caption, background="red" if caption.background != "red" else "blue")
        words = {
            "shape": ("cross", "circle"),
            "colour": ("red", "blue"),
            "size": ("small", "large"),
        }
        a, b = words[attribute]
        changed = replace(first, **{attribute: b if getattr(first, attribute) == a else a})
        return replace(caption, claims=(changed, *rest))

    for scene, picture in truth[:150]:
        if attribute == "relation" and not scene.relation:
            continue
        verdict = judge(picture, other(full_caption(scene)))
        assert not all(verdict.values())
        if len(scene.things) == 1 or attribute == "background":
            assert not verdict[attribute]


def test_noise_and_flat_pictures_are_rejected(truth):
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    pictures = [noise, np.zeros_like(noise), np.full_like(noise, 245), np.full_like(noise, 128)]
    for scene, _ in truth[:10]:
        assert not any(all(judge(p, full_caption(scene)).values()) for p in pictures)
    assert see(noise).background is None


def test_blobs_and_smears_have_no_shape():
    picture = np.full((128, 128, 3), 245, np.uint8)
    picture[40:60, 20:100] = (220, 40, 40)
    (bar,) = see(picture).things
    assert bar.shape is None
    assert bar.colour == "red"
