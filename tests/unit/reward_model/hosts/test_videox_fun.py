"""VideoX-Fun: copies of what its training and its validation pass to a reward, by the calls of commit 804a425."""

from __future__ import annotations

import json
import weakref
from abc import ABC, abstractmethod
from types import SimpleNamespace

import pytest
import torch

from reward_model.hosts.videox_fun import JudgeFrames
from tests.host_clips import FPS

PROMPTS = ["a red circle moving left", "a blue square moving right"]
SETTINGS = '{"judge": "toy", "fps": 16, "decoded_frames": 9, "validation_frames": 81}'


def clips(num=2, frames=5):
    return torch.rand(num, frames, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def gradient(value, frames):
    (slope,) = torch.autograd.grad(value, frames)
    return slope


class BaseReward(ABC):
    """The host's base class."""

    def __init__(self):
        self.built = True

    @abstractmethod
    def __call__(self, batch_frames, batch_prompt=None): ...

    @abstractmethod
    def get_reward(self, batch_frames, batch_prompt=None): ...


class HostJudge(JudgeFrames, BaseReward):
    """The class that a user writes into the host's module."""


@pytest.mark.parametrize("kind", [JudgeFrames, HostJudge])
def test_videox_fun_builds_from_json_and_trains_on_channels_first_videos(judge, kind):
    settings = json.loads('{"judge": "toy", "fps": 8, "max_reward": 1, "loss_scale": 0.5, "validation_frames": 5}')
    reward_fn = kind(device="cpu", dtype=torch.float32, **settings)
    frames = clips().transpose(1, 2).requires_grad_(True)  # [B, C, T, H, W]
    rewards = judge(clips(), PROMPTS, fps=FPS).rewards
    loss, reward = reward_fn(frames, PROMPTS)
    torch.testing.assert_close(reward, rewards.mean(), rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, 0.5 * (1 - rewards).mean(), rtol=0, atol=1e-5)
    each = reward_fn.get_reward(frames, PROMPTS)
    torch.testing.assert_close(each, rewards, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient(loss, frames), -0.25 * gradient(each.sum(), frames))
    with torch.no_grad():
        assert not reward_fn.get_reward(frames, PROMPTS).requires_grad


def test_videox_fun_is_its_hosts_reward(judge):
    reward_fn = HostJudge(judge, FPS)
    assert isinstance(reward_fn, BaseReward) and reward_fn.built


def test_videox_fun_hears_of_missing_rewards_and_other_ranges(judge, mute):
    frames = clips().transpose(1, 2)
    with pytest.warns(UserWarning, match="2 of 2 rewards are unavailable: video 0: only .* five level words"):
        assert JudgeFrames(mute, FPS).get_reward(frames, PROMPTS).isnan().all()
    with pytest.raises(RuntimeError, match="2 of 2 rewards"):
        JudgeFrames(mute, FPS)(frames, PROMPTS)
    with pytest.raises(RuntimeError, match=r"2 of 2 .* must lie in \[0, 1\]"):
        JudgeFrames(judge, FPS)(frames * 2 - 1, PROMPTS)
    with pytest.raises(ValueError, match="3 channels"):
        JudgeFrames(judge, FPS)(clips(), PROMPTS)


class RecordingJudge:
    """A judge whose reward is the mean pixel, and which keeps the rates that it is told."""

    def __init__(self):
        self.rates = []

    def __call__(self, videos, prompts, *, fps, layout, weights, differentiable):
        self.rates.append(fps)
        assert layout == "BCTHW" and len(videos) == len(prompts)
        return SimpleNamespace(rewards=videos.mean(dim=(1, 2, 3, 4)), scores={}, reasons={})

    def as_loss(self, target, **how):
        def loss(videos, prompts, *, fps, layout):
            out = self(videos, prompts, fps=fps, layout=layout, weights=None, differentiable=True)
            return -out.rewards.mean(), out.rewards.detach()

        return loss


def step(loss_fn, decoded, num_sampled_frames=None):
    """Training: frames [B, C, T, H, W], of which the host keeps some including the last."""
    frames = (decoded.clamp(-1, 1) / 2 + 0.5).clamp(0, 1)
    if num_sampled_frames is not None:
        frames = frames[:, :, torch.linspace(0, frames.size(2) - 1, steps=num_sampled_frames).long()]
    loss, reward = loss_fn(frames, PROMPTS[: len(frames)])
    loss.backward()
    return loss.repeat(2), reward.repeat(2)


def validate(loss_fn, videos):
    """Validation: 4 frames [1, 3, 4, H, W] of each video, without gradient; an exception is printed and ends it."""
    try:
        total_loss, total_reward = 0, 0
        for video, prompt in zip(videos, PROMPTS, strict=True):  # [T, C, H, W]
            with torch.no_grad():
                frames = video[[len(video) * place // 4 for place in range(4)]]
                loss, reward = loss_fn(torch.stack([frames]).transpose(1, 2), [prompt])
                total_loss, total_reward = total_loss + loss, total_reward + reward
        return total_loss / len(videos), total_reward / len(videos)
    except Exception as error:  # noqa: BLE001  # as the host does
        print(f"Eval error with info {error}")  # noqa: T201
        return None, None


def build(judge, **settings):
    return JudgeFrames(device="cpu", dtype=torch.float32, **{**json.loads(SETTINGS), "judge": judge, **settings})


def test_thinned_frames_are_told_at_their_own_rate():
    judge = RecordingJudge()
    reward_fn = build(judge)
    decoded = torch.rand(2, 3, 9, 8, 8, requires_grad=True)
    step(reward_fn, decoded)  # nine frames at 16 Hz
    step(reward_fn, decoded, num_sampled_frames=3)  # frames 0, 4 and 8
    step(reward_fn, decoded, num_sampled_frames=1)
    loss, reward = validate(reward_fn, torch.rand(2, 81, 3, 8, 8))  # frames 0, 20, 40 and 60 of 81
    assert judge.rates == pytest.approx([16, 4, 16, 16 * 4 / 81, 16 * 4 / 81]) and float(loss) == -float(reward)
    with torch.no_grad():
        reward_fn.get_reward(torch.rand(1, 3, 81, 8, 8), PROMPTS[:1])  # get_rewards_1video.py with all frames
        reward_fn.get_reward(torch.rand(1, 3, 27, 8, 8), PROMPTS[:1])
    assert judge.rates[5:] == pytest.approx([16, 16 / 3])


def test_validation_scores_are_those_of_the_frames_at_their_own_rate(judge):
    videos = clips(2, frames=9)
    _, reward = validate(build("toy", fps=8, validation_frames=9), videos)
    kept = videos[:, [0, 2, 4, 6]]
    right, wrong = (judge(kept, PROMPTS, fps=fps).rewards.mean().item() for fps in (8 * 4 / 9, 8))
    assert reward.item() == pytest.approx(right, abs=1e-5) and abs(right - wrong) > 1e-3


def test_a_rate_that_nobody_has_told_is_not_made_up(capsys):
    assert validate(build(RecordingJudge(), validation_frames=None), torch.rand(2, 9, 3, 8, 8)) == (None, None)
    assert "validation_frames is needed without gradient" in capsys.readouterr().out
    with pytest.raises(ValueError, match="decoded_frames must be the frames before .*, got 3 for 9 frames"):
        step(build(RecordingJudge(), decoded_frames=3), torch.rand(1, 3, 9, 8, 8, requires_grad=True))
    for name in ("fps", "decoded_frames", "validation_frames"):
        with pytest.raises(ValueError, match=f"{name} must be > 0, got 0"):
            build(RecordingJudge(), **{name: 0})


def test_the_copy_that_the_main_process_loads_first_is_freed():
    def load(dtype):
        return JudgeFrames(device="cpu", dtype=dtype, **json.loads(SETTINGS))

    loss_fn = load(torch.bfloat16)  # the main process checks that the model is there
    first = weakref.ref(loss_fn.judge), weakref.ref(next(loss_fn.judge.parameters()))
    loss_fn = load(torch.float32)
    assert all(one() is None for one in first) and loss_fn.judge.dtype == torch.float32
