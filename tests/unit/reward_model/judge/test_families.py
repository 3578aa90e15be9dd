"""Preprocessing of the families: values, gradients, sizes, and what is refused."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from reward_model.judge.engine.batching import clip_grid, patches_of
from reward_model.judge.families import family_of
from reward_model.judge.families.base import patchify, prefix_positions
from reward_model.records import Clip
from tests.tiny_judge import FAMILIES, build_judge, make_clip


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return build_judge(request.param).family


def unpatchify(patches, size, facts):
    """Undo the patch order: [N, P, D] -> normalised frames [N, T, 3, H, W]."""
    p, m, pair = facts.patch_size, facts.merge_size, facts.temporal_patch_size
    lines, columns = size[0] // p // m, size[1] // p // m
    blocks = patches.reshape(len(patches), -1, lines, columns, m, m, 3, pair, p, p)
    return blocks.permute(0, 1, 7, 6, 2, 4, 8, 3, 5, 9).reshape(len(patches), -1, 3, *size)


def test_unresized_patches_hold_the_normalised_pixels_in_merge_order(family):
    frames = make_clip(4, 32, 48).frames[None]
    patches = patchify(frames, (32, 48), family.facts, quantise=False)
    mean, std = (torch.tensor(v)[:, None, None] for v in (family.facts.mean, family.facts.std))
    assert patches.shape == (1, 2 * 4 * 6, 3 * 2 * 8 * 8)
    assert_close(unpatchify(patches, (32, 48), family.facts), (frames - mean) / std, atol=1e-5, rtol=0)


def test_an_odd_number_of_frames_repeats_the_last(family):
    frames = make_clip(3).frames
    longer = torch.cat([frames, frames[-1:]])
    odd, even = (patchify(f[None], (32, 32), family.facts, quantise=True) for f in (frames, longer))
    assert torch.equal(odd, even)


def test_quantised_values_are_those_of_eight_bit_pixels(family):
    frames = make_clip(2, 40, 56).frames
    bits = (frames * 255).round().to(torch.uint8)
    resized = F.interpolate(bits, (32, 48), mode="bicubic", antialias=True).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (family.facts.mean, family.facts.std))
    patches = patchify(frames[None], (32, 48), family.facts, quantise=True)
    assert_close(unpatchify(patches, (32, 48), family.facts)[0], (resized - mean) / std, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(40, 56), (32, 48)])
def test_the_quantised_gradient_is_exactly_that_of_the_float_resize(family, size):
    frames = make_clip(2, *size).frames[None].requires_grad_()
    gradients = []
    for quantise in (True, False):
        patches = patchify(frames, (32, 48), family.facts, quantise=quantise)
        weight = torch.randn(patches.shape, generator=torch.Generator().manual_seed(1))
        gradients.append(torch.autograd.grad((patches * weight).sum(), frames)[0])
    assert gradients[0].abs().min() > 0
    assert torch.equal(*gradients)


def test_the_float_path_agrees_with_central_differences_in_double(family):
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(1, 2, 3, 20, 27, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(1, 16, 384, generator=generator, dtype=torch.float64)

    def value(x):
        return (patchify(x, (32, 32), family.facts, quantise=False) * weight).sin().sum()

    (gradient,) = torch.autograd.grad(value(frames), frames)
    direction = torch.randn(frames.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        slope = (value(frames + 1e-5 * direction) - value(frames - 1e-5 * direction)) / 2e-5
    assert_close((gradient * direction).sum(), slope, rtol=1e-3, atol=0)


def test_sizes_respect_the_pixel_bounds_per_frame_or_per_clip():
    per_frame = dataclasses.replace(build_judge("qwen2_5_vl").family, min_pixels=1024, max_pixels=4096)
    per_clip = dataclasses.replace(build_judge("qwen3_vl").family, min_pixels=1024, max_pixels=4096 * 8)
    assert per_frame.size(8, 100, 200) == per_frame.size(80, 100, 200) == (32, 80)
    assert per_clip.size(8, 100, 200) == (32, 80)
    assert per_clip.size(80, 100, 200) == (16, 16)
    assert per_frame.size(8, 10, 10) == (32, 32)
    assert per_frame.size(1, 50, 41) == (48, 48)
    assert per_clip.size(1, 50, 41) == (48, 48)


def test_needle_shaped_frames_are_refused(family):
    with pytest.raises(ValueError, match="too narrow"):
        family.size(2, 16, 16 * 201)


@pytest.mark.parametrize("shape", [(3, 32, 32), (4, 1, 32, 32), (0, 3, 32, 32)])
def test_clips_of_another_shape_than_their_plan_are_refused(family, shape):
    with pytest.raises(ValueError, match="a clip needs frames"):
        clip_grid(Clip(torch.zeros(shape), make_clip(4).plan), family)


def test_clips_of_one_size_go_together_and_come_back_in_order(family):
    clips = [make_clip(4, 32, 32, seed=0), make_clip(5, 48, 32, seed=1), make_clip(4, 32, 32, seed=2)]
    device = torch.device("cpu")
    together, grids = patches_of(clips, family, quantise=True, device=device)
    single = [patches_of([clip], family, quantise=True, device=device) for clip in clips]
    assert torch.equal(together, torch.cat([patches for patches, _ in single]))
    assert torch.equal(grids, torch.cat([grid for _, grid in single]))


def test_positions_follow_the_rule_by_hand():
    is_video = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 0], dtype=torch.bool)
    positions, following = prefix_positions(is_video, [((2, 1, 3), 2.5)])
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 4, 4, 4, 5],  # time: 2 + int(2.5 * group)
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]
    assert following == 6


def test_a_model_that_cannot_judge_and_bounds_in_the_wrong_order_are_refused():
    config = build_judge().model.config
    with pytest.raises(ValueError, match="pixel bounds must be 0 < min <= max, got 5 and 4"):
        family_of(config, 5, 4)
    with pytest.raises(ValueError, match="'qwen2_5_vl_text' cannot judge, expected one of qwen2_5_vl, qwen3_vl"):
        family_of(config.text_config, 1, 4)
