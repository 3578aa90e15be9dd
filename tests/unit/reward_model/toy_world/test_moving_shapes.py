"""The world: captions, rendering, labels, splits."""

import dataclasses
import random

import pytest
import torch

from reward_model.media.distortions import DEFECTS
from reward_model.toy_world import labels, shapes
from reward_model.toy_world import moving_shapes as world


def frames_of(scene, seed=0, **kwargs):
    return world.render(scene, generator=torch.Generator().manual_seed(seed), **kwargs)


SCENE = world.Scene("square", "red", "right", "quickly", "large", "plain")


def test_the_whole_grammar_is_as_large_as_promised():
    sizes = [len(world.FULL.values(name)) for name in world.ATTRIBUTES]
    assert all(size >= least for size, least in zip(sizes, (6, 8, 8, 3, 3, 4), strict=True))
    assert len(world.CORE.scenes()) == 4 * 6 * 4 * 2 * 2


def test_every_caption_is_its_own_and_is_read_back():
    captions = {world.caption(scene): scene for scene in world.FULL.scenes()}
    assert len(captions) == len(world.FULL.scenes())
    assert all(world.parse_caption(text) == scene for text, scene in captions.items())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat",
        "a large red square moving right quickly over a plain",
        "a large red dog moving right quickly over a plain floor",
        "a large red square falling right quickly over a plain floor",
    ],
)
def test_other_text_is_no_caption(text):
    assert world.parse_caption(text) is None


def test_a_clip_has_the_promised_shape_and_range():
    clip = frames_of(SCENE, num_frames=5, size=48)
    assert clip.shape == (5, 3, 48, 48) and clip.dtype == torch.float32
    assert 0 <= clip.min() and clip.max() <= 1


def test_the_shape_moves_as_captioned():
    clip = frames_of(SCENE)
    red = clip[:, 0] - clip[:, 1]
    x = (red.clamp_min(0.4) - 0.4).sum(1) @ torch.arange(32.0) / (red.clamp_min(0.4) - 0.4).sum((1, 2))
    torch.testing.assert_close(x.diff(), torch.full((8,), world.SPEEDS["quickly"]), atol=0.2, rtol=0)


def test_equal_seeds_draw_equal_clips_and_others_do_not():
    assert torch.equal(frames_of(SCENE, seed=3), frames_of(SCENE, seed=3))
    assert not torch.equal(frames_of(SCENE, seed=3), frames_of(SCENE, seed=4))


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_shapes_of_one_size_cover_one_area(shape):
    offsets = torch.arange(-14.0, 14.01, 0.1)
    cover = shapes.shape_mask(shape, offsets[None], offsets[:, None], 6.0, edge=0.1)
    assert float(cover.sum()) * 0.01 == pytest.approx(3.14159 * 36, rel=0.01)


def test_held_out_finetuning_and_pretraining_captions_share_none():
    train, held_out = world.split(world.CORE)
    tuning, pretraining = world.finetuning_scenes(world.CORE), world.pretraining_scenes(world.CORE)
    assert len(held_out) == 64 and len(tuning) == 64
    assert set(train) == set(tuning) | set(pretraining)
    assert not set(tuning) & set(pretraining) and not set(train) & set(held_out)


def test_every_value_of_held_out_captions_is_seen_in_pretraining():
    seen = world.pretraining_scenes(world.CORE)
    for name in world.ATTRIBUTES:
        assert {getattr(scene, name) for scene in seen} == set(world.CORE.values(name))


def test_a_clean_matching_clip_is_perfect():
    assert set(world.label({}, SCENE, SCENE).values()) == {1.0}


def test_labels_multiply_the_factors_of_the_table():
    shown = dataclasses.replace(SCENE, colour="blue", speed="slowly")
    found = world.label({"blur": 2, "jitter": 1.5}, SCENE, shown)
    assert found["visual_quality"] == pytest.approx(0.55)
    assert found["motion_quality"] == pytest.approx((0.8 + 0.55) / 2)
    alignment = 0.98 * (1.0 + 0.99) / 2 * 0.3 * 0.6
    assert found["text_alignment"] == pytest.approx(alignment)
    mean = (0.55 * 0.675 * alignment) ** (1 / 3)
    assert found["overall"] == pytest.approx((alignment * mean) ** 0.5)


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_lowers_some_dimension_at_every_severity(defect):
    found = [world.label({defect: severity}, SCENE, SCENE) for severity in range(5)]
    assert any(all(a[name] > b[name] for a, b in zip(found, found[1:], strict=False)) for name in labels.TABLE[defect])


def test_rated_clips_are_the_same_for_the_same_seed_and_of_the_training_scenes():
    first, again = (world.sample_rated(12, seed=5) for _ in range(2))
    train = set(world.split(world.CORE)[0])
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.video.frames, two.video.frames) and one.quality == two.quality
        assert world.Scene(**one.facts["scene"]) in train and world.Scene(**one.facts["shown"]) in train
        assert one.facts["caption"] == world.caption(world.Scene(**one.facts["shown"]))
        assert one.prompt == world.caption(world.Scene(**one.facts["scene"]))


def test_faults_name_what_lowers_each_dimension():
    for clip in world.sample_rated(40, seed=6):
        for dimension, faults in clip.facts["faults"].items():
            assert (clip.quality[dimension] < 1) <= bool(faults)


def test_mismatches_differ_in_the_number_of_attributes_asked_for():
    rng, pool = random.Random(0), world.CORE.scenes()
    for num in (1, 2, 3):
        for _ in range(20):
            other = world.mismatch(pool[17], pool, rng, num=num)
            assert len(world.wrong_attributes(pool[17], other)) == num


def test_about_half_the_clips_match_and_a_quarter_are_undamaged():
    clips = world.sample_rated(300, seed=7)
    assert 0.4 < sum(c.facts["scene"] == c.facts["shown"] for c in clips) / 300 < 0.6
    assert 0.17 < sum(not c.facts["defects"] for c in clips) / 300 < 0.33


def test_every_clip_knows_its_alignment_with_other_prompts():
    pool, left_out = world.split(world.CORE)
    held_out = {world.caption(scene) for scene in left_out}
    clips = world.sample_rated(60, seed=5, scenes=pool, clean_share=1.0)
    named = dict.fromkeys(world.PHRASES, 0)
    for clip in clips:
        matches, shown = clip.facts["matches"], clip.facts["shown"]
        assert matches[clip.facts["caption"]] == 1.0 and not held_out & set(matches)
        for name, phrase in world.PHRASES.items():
            values = [v for v in world.CORE.values(name) if phrase.format(v) in matches]
            named[name] += bool(values)
            # one right and one wrong value, each with the table's quality
            assert not values or sorted(matches[phrase.format(v)] for v in values) == [labels.WRONG[name], 1.0]
            assert not values or matches[phrase.format(shown[name])] == 1.0
    assert named["shape"] == named["direction"] == 60
    assert all(5 < named[name] < 40 for name in ("colour", "speed", "size"))
