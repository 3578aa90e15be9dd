"""pixel_loss against values by hand, with a reward that is the mean of the pixels."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

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
