"""The oracle against the renderer's truth; `scripts/experiments/oracle_report.py` shows the same on more clips."""

import dataclasses
import random

import pytest
import torch

from reward_model.evaluation.metrics import srcc
from reward_model.media.distortions import DEFECTS, distort
from reward_model.records import DIMENSIONS
from reward_model.toy_world import labels, oracle
from reward_model.toy_world import moving_shapes as world

NUM = 16
STRICT = [
    (d, dim) for d, dims in labels.TABLE.items() for dim, f in dims.items() if f == labels.FALL and d[0:2] != "h2"
]


@pytest.fixture(scope="module")
def clean():
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    scenes = [rng.choice(world.CORE.scenes()) for _ in range(NUM)]
    return [(scene, world.render(scene, generator=generator)) for scene in scenes]


def mean(pairs, dimension):
    scores = [oracle.score(clip, world.caption(scene))[dimension] for scene, clip in pairs]
    return sum(scores) / len(scores)


@pytest.mark.parametrize(("grammar", "size"), [(world.CORE, 32), (world.FULL, 32), (world.FULL, 64)])
def test_attributes_of_clean_clips_are_read_right(grammar, size):
    rng, generator = random.Random(1), torch.Generator().manual_seed(1)
    scenes = [rng.choice(grammar.scenes()) for _ in range(40)]
    read = [oracle.read_attributes(world.render(s, generator=generator, size=size), grammar) for s in scenes]
    for name in world.ATTRIBUTES:
        right = sum(getattr(a, name) == getattr(b, name) for a, b in zip(read, scenes, strict=True))
        assert right >= 38, f"{name}: {right} of 40"


def test_a_clean_clip_is_perfect_in_every_dimension(clean):
    for dimension in DIMENSIONS:
        assert mean(clean, dimension) > 0.98


@pytest.mark.parametrize(("defect", "dimension"), STRICT)
def test_the_struck_dimension_follows_the_table(clean, defect, dimension):
    generator = torch.Generator().manual_seed(2)
    means = [
        mean(
            [(scene, distort(clip, defect, s, generator=generator, fps=world.FPS)) for scene, clip in clean], dimension
        )
        for s in range(5)
    ]
    assert all(low < high for high, low in zip(means, means[1:], strict=False)), means
    assert means == pytest.approx(labels.FALL, abs=0.15)


@pytest.mark.parametrize("defect", ("blur", "grain", "darken"))
def test_spatial_defects_leave_the_motion_alone(clean, defect):
    generator = torch.Generator().manual_seed(3)
    damaged = [(scene, distort(clip, defect, 3, generator=generator)) for scene, clip in clean]
    assert mean(damaged, "motion_quality") > 0.95


@pytest.mark.parametrize("defect", ("jitter", "freeze", "stutter", "shuffle"))
def test_temporal_defects_leave_the_picture_alone(clean, defect):
    generator = torch.Generator().manual_seed(4)
    damaged = [(scene, distort(clip, defect, 3, generator=generator)) for scene, clip in clean]
    assert mean(damaged, "visual_quality") > 0.95


@pytest.mark.parametrize("name", [n for n in world.ATTRIBUTES if len(world.CORE.values(n)) > 1])
def test_a_wrong_attribute_costs_what_the_table_says(clean, name):
    rng = random.Random(5)
    asked = [
        (dataclasses.replace(s, **{name: rng.choice([v for v in world.CORE.values(name) if v != getattr(s, name)])}), c)
        for s, c in clean
    ]
    assert mean(asked, "text_alignment") == pytest.approx(labels.WRONG[name], abs=0.06)


def test_scores_rank_mixed_clips_as_their_labels_do():
    clips = world.sample_rated(80, seed=6)
    scores = [oracle.score(clip.video.frames, clip.prompt) for clip in clips]
    for dimension in DIMENSIONS:
        assert srcc([clip.quality[dimension] for clip in clips], [score[dimension] for score in scores]) > 0.85


def half_in_another_colour(scene, clip):
    other = torch.tensor(world.COLOURS["green" if scene.colour == "red" else "red"]).view(3, 1, 1)
    colourful = (clip - clip.mean(1, keepdim=True)).abs().amax(1, keepdim=True) > 0.15
    rows = torch.arange(32).view(1, 1, -1, 1)
    centre = (colourful * rows).sum((2, 3), keepdim=True) / colourful.sum((2, 3), keepdim=True)
    return torch.where(colourful & (rows < centre), other, clip)


CHEATS = {
    "static": lambda scene, clip: clip[4:5].expand_as(clip),
    "two positions": lambda scene, clip: clip[[0] * 4 + [8] * 5],
    "mixed colour": half_in_another_colour,
    "reversed": lambda scene, clip: clip.flip(0),
    "no shape": lambda scene, clip: clip[:, :, :1, :1].expand_as(clip),
    "noise": lambda scene, clip: torch.rand(clip.shape, generator=torch.Generator().manual_seed(7)),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_earns_less_than_half_of_a_clean_clip(clean, cheat):
    made = [(scene, CHEATS[cheat](scene, clip)) for scene, clip in clean]
    assert mean(made, "overall") < 0.5 * mean(clean, "overall")


def test_one_clip_for_every_prompt_earns_less_than_half(clean):
    made = [(scene, clean[0][1]) for scene, _ in clean]
    assert mean(made, "overall") < 0.5 * mean(clean, "overall")


def test_open_features_follow_what_the_renderer_drew():
    scene = world.Scene("square", "blue", "right", "slowly", "small", "plain")
    found = []
    for seed in range(12):
        clip = world.render(scene, generator=torch.Generator().manual_seed(seed))
        place = 2 * float(torch.rand(7, generator=torch.Generator().manual_seed(seed))[0]) - 1
        found.append((place, oracle.open_features(clip, world.caption(scene))["place"], float(clip[:, 0, 0, 0].mean())))
    assert srcc([f[0] for f in found], [f[1] for f in found]) > 0.99
    assert len({round(f[2], 3) for f in found}) > 8


def test_open_features_without_a_shape_are_nan():
    found = oracle.open_features(torch.full((9, 3, 32, 32), 0.4), world.caption(world.CORE.scenes()[0]))
    assert found["shade"] == pytest.approx(0.4) and found["place"] != found["place"] and found["tint"] != found["tint"]


@pytest.mark.parametrize("frames", [torch.zeros(9, 3, 32, 30), torch.zeros(2, 3, 32, 32), torch.zeros(9, 1, 32, 32)])
def test_clips_of_another_form_are_refused(frames):
    with pytest.raises(ValueError, match="square RGB"):
        oracle.score(frames, world.caption(world.CORE.scenes()[0]))


def test_prompts_of_another_world_are_refused(clean):
    with pytest.raises(ValueError, match="captions of moving shapes"):
        oracle.score(clean[0][1], "a cat on a mat")


def test_every_defect_has_a_row_in_the_table():
    assert set(labels.TABLE) == set(DEFECTS)
