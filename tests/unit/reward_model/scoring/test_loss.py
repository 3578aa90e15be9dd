"""pixel_loss against values by hand, with a reward that is the mean of the pixels."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from reward_model.records import Video
from reward_model.scoring.loss import pixel_loss

PLAIN = {"scale": 1.0, "space": "expectation", "weights": None}


def brightness(videos, prompts, *, fps, layout, weights, differentiable):
    """Return each video's mean brightness as its reward, NaN for a black one."""
    assert differentiable
    rewards = videos.mean(dim=(1, 2, 3, 4))
    reasons = ["too dark" if reward == 0 else "" for reward in rewards.tolist()]
    return SimpleNamespace(rewards=rewards.where(rewards > 0, math.nan), reasons={"overall": reasons})


def grey(*values):
    """Return videos [B, 1, 1, 1, 2] of one grey each."""
    return torch.tensor(values)[:, None, None, None, None].expand(-1, 1, 1, 1, 2).clone().requires_grad_(True)


def test_without_a_target_the_loss_is_minus_the_scaled_mean_reward():
    videos = grey(0.2, 0.6)
    loss, rewards = pixel_loss(brightness, None, **PLAIN | {"scale": 2.0})(videos, "a dog", fps=8.0)
    assert_close(loss, torch.tensor(-0.8))
    assert_close(rewards, torch.tensor([0.2, 0.6]))
    assert loss.requires_grad and not rewards.requires_grad
    loss.backward()
    assert_close(videos.grad, torch.full_like(videos, -0.5))  # -2 / (2 videos x 2 pixels)


def test_with_a_target_the_loss_is_the_mean_distance():
    loss, _ = pixel_loss(brightness, 0.5, **PLAIN)(grey(0.2, 0.6), fps=8.0)
    assert_close(loss, torch.tensor(0.2))


def test_the_logit_space_takes_log_odds_and_returns_plain_rewards():
    loss, rewards = pixel_loss(brightness, None, **PLAIN | {"space": "logit"})(grey(0.8), fps=8.0)
    assert_close(loss, torch.tensor(-math.log(4.0)))
    assert_close(rewards, torch.tensor([0.8]))


def test_an_unavailable_reward_stops_the_loss_with_its_reason():
    with pytest.raises(
        RuntimeError, match=r"1 of 2 rewards could not be computed: \{'overall': \['video 1: too dark'\]\}"
    ):
        pixel_loss(brightness, None, **PLAIN)(grey(0.5, 0.0), fps=8.0)


def test_the_reason_of_a_missing_reward_leaves_out_dimensions_that_have_none():
    def partly(videos, prompts, **settings):
        out = brightness(videos, prompts, **settings)
        return SimpleNamespace(rewards=out.rewards, reasons={"motion_quality": ["", ""], **out.reasons})

    with pytest.raises(RuntimeError, match=r"computed: \{'overall': \['video 1: too dark'\]\}$"):
        pixel_loss(partly, None, **PLAIN)(grey(0.5, 0.0), fps=8.0)


def steep(videos, prompts, *, fps, layout, weights, differentiable):
    """Return rewards whose slope at a black video is infinite: the square root of its brightness, plus a half."""
    frames = torch.stack([getattr(video, "frames", video) for video in videos])
    rewards = frames.mean(dim=(1, 2, 3, 4)).sqrt() + 0.5
    return SimpleNamespace(rewards=rewards, reasons={})


def shapes_of(videos, shape):
    """Return a batch [B, T, C, H, W] as itself, as one with its batch second, as a list of tensors or of `Video`."""
    return {
        "BTCHW": lambda: (videos, "BTCHW"),
        "TBCHW": lambda: (videos.transpose(0, 1), "TBCHW"),
        "list": lambda: (list(videos.unbind()), "BTCHW"),
        "Video": lambda: ([Video(frames=v, fps=8.0) for v in videos.unbind()], "BTCHW"),
    }[shape]()


@pytest.mark.parametrize("shape", ["BTCHW", "TBCHW", "list", "Video"])
def test_a_gradient_that_is_not_finite_stops_the_backward_pass_and_names_its_clips(shape):
    def reward(videos, prompts, *, layout, **rest):
        """Bring the batch axis to the front, as the judge does."""
        return steep(videos.transpose(0, 1) if layout == "TBCHW" else videos, prompts, layout=layout, **rest)

    videos = grey(0.2, 0.0, 0.5, 0.0)
    shown, layout = shapes_of(videos, shape)
    loss, rewards = pixel_loss(reward, None, **PLAIN)(shown, fps=8.0, layout=layout)
    assert torch.isfinite(rewards).all()
    with pytest.raises(RuntimeError, match=r"gradient to clip (1, 3|3) of the batch is not finite .*float32 frames"):
        loss.backward()
    shown, layout = shapes_of(videos, shape)
    loss, _ = pixel_loss(reward, None, **PLAIN, check_gradients=False)(shown, fps=8.0, layout=layout)
    loss.backward()
    assert torch.isfinite(videos.grad[0]).all() and not torch.isfinite(videos.grad[1]).any()


def test_videos_without_a_gradient_are_handed_on_as_they_are():
    seen = []
    given = [[1, 2], "clip.mp4", ["a.mp4", "b.mp4"], torch.zeros(1, 1, 1, 1, 2)]
    for videos in given:

        def reward(videos, prompts, **rest):
            """Note what came."""
            seen.append(videos)
            return SimpleNamespace(rewards=torch.ones(1, requires_grad=True), reasons={})

        pixel_loss(reward, None, **PLAIN)(videos, fps=8.0)
    assert all(one is other for one, other in zip(seen, given, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": "linear"}, "space must be 'expectation' or 'logit', got 'linear'"),
        ({"space": "logit", "weights": {"overall": 1.0}}, "space='logit' needs weights=None"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        pixel_loss(brightness, None, **PLAIN | change)
