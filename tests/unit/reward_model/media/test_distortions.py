"""Defects: identity at severity 0, seeded, stronger at higher severity."""

import pytest
import torch

from reward_model.media import distortions
from reward_model.media.distortions import DEFECTS, SEVERITIES, amount_at, distort, severity_number
from reward_model.media.video_io import encode_video
from reward_model.toy_world import moving_shapes as world

SCENE = world.Scene("cross", "green", "right", "quickly", "large", "plain")
CLIP = world.render(SCENE, generator=torch.Generator().manual_seed(0))
CODECS = ("h264", "h265")


def damage(name, severity, seed=0, clip=CLIP):
    return distort(clip, name, severity, generator=torch.Generator().manual_seed(seed), fps=world.FPS)


@pytest.mark.parametrize("name", DEFECTS)
def test_severity_zero_returns_the_clip_itself(name):
    assert damage(name, 0) is CLIP
    assert damage(name, "none") is CLIP


@pytest.mark.parametrize("name", DEFECTS)
def test_the_damaged_clip_keeps_shape_and_range_and_differs(name):
    found = damage(name, "severe")
    assert found.shape == CLIP.shape and found.dtype == torch.float32
    assert 0 <= found.min() and found.max() <= 1
    assert (found - CLIP).abs().mean() > 0.005


@pytest.mark.parametrize("name", [name for name in DEFECTS if name not in CODECS])
def test_equal_seeds_do_equal_damage(name):
    assert torch.equal(damage(name, 2.5, seed=1), damage(name, 2.5, seed=1))


@pytest.mark.parametrize("name", DEFECTS)
def test_damage_grows_with_severity(name):
    clips = [world.render(SCENE, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    change = [
        sum(float((damage(name, s, seed=i, clip=c) - c).abs().mean()) for i, c in enumerate(clips)) for s in (1, 2.5, 4)
    ]
    assert change[0] < change[1] < change[2]


def test_odd_sides_survive_the_codecs():
    clip = torch.rand(3, 3, 35, 37, generator=torch.Generator().manual_seed(0))
    for name in CODECS:
        assert damage(name, 1, clip=clip).shape == clip.shape


def test_severities_have_names_and_fractions_lie_between():
    assert [severity_number(name) for name in SEVERITIES] == [0, 1, 2, 3, 4]
    low, high = amount_at("blur", 1), amount_at("blur", 2)
    assert amount_at("blur", 1.5) == pytest.approx((low + high) / 2)
    assert amount_at("blur", 4) == DEFECTS["blur"].amounts[-1]


@pytest.mark.parametrize("severity", [-0.1, 4.5, float("nan"), "awful"])
def test_unknown_severities_are_refused(severity):
    with pytest.raises(ValueError, match="severity must be"):
        damage("blur", severity)


def test_unknown_defects_are_refused():
    with pytest.raises(ValueError, match="defect must be one of downscale"):
        damage("rust", 1)


def test_blur_of_a_flat_clip_changes_nothing():
    flat = torch.full((2, 3, 16, 16), 0.4)
    torch.testing.assert_close(damage("blur", 4, clip=flat), flat)


def test_blur_is_a_share_of_the_shorter_side_and_at_32_pixels_what_labels_were_made_with():
    def step(size):
        clip = torch.zeros(1, 3, *size)
        clip[..., size[1] // 2 :] = 1
        return damage("blur", 2, clip=clip)[0, 0, size[0] // 2]

    small, large = step((32, 32)), step((128, 160))
    # the edge at half, then at 1, 2 and 3 pixels beyond it in the small clip and at 4 times as many in the large one
    for offset in (1, 2, 3):
        assert small[16 : 16 + offset].mean() == pytest.approx(float(large[80 : 80 + 4 * offset].mean()), abs=0.01)
    pixels = (0, 0.9, 1.4, 2.0, 2.8)
    assert [amount * 32 for amount in DEFECTS["blur"].amounts] == list(pixels)


def test_codecs_encode_at_the_clips_own_rate(monkeypatch):
    rates = []

    def encode(frames, fps, **settings):
        rates.append(fps)
        return encode_video(frames, fps, **settings)

    monkeypatch.setattr(distortions, "encode_video", encode)
    for name in CODECS:
        distort(CLIP, name, 2, generator=torch.Generator(), fps=29.97)
        with pytest.raises(ValueError, match=f"fps is required for {name}"):
            distort(CLIP, name, 2, generator=torch.Generator())
    assert rates == [29.97, 29.97]


def test_freeze_at_its_worst_is_a_still_picture():
    found = damage("freeze", 4)
    assert torch.equal(found, CLIP[:1].expand_as(CLIP))


def test_stutter_only_repeats_frames_and_keeps_their_order():
    found = damage("stutter", 3)
    origin = [next(i for i, frame in enumerate(CLIP) if torch.equal(frame, shown)) for shown in found]
    assert origin == sorted(origin) and len(set(origin)) < len(origin)


def test_shuffle_only_changes_the_order():
    found = damage("shuffle", 4)
    assert sorted(float(f.double().sum()) for f in found) == sorted(float(f.double().sum()) for f in CLIP)


def test_identity_drift_leaves_the_first_frame_and_all_greys():
    found = damage("identity_drift", 3)
    torch.testing.assert_close(found[0], CLIP[0])
    torch.testing.assert_close(found[-1, :, 0, 0], CLIP[-1, :, 0, 0], atol=1e-5, rtol=0)
