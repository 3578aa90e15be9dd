"""DanceGRPO's Wan trainer: a hand-written double of its step, with the docstring's lines in it, meets the embedded judge."""

from __future__ import annotations

import math

import numpy
import pytest
import torch

from reward_model.hosts import dancegrpo
from reward_model.hosts.core import TrainingStop
from reward_model.hosts.dancegrpo import clip_reward
from tests.host_clips import FPS, PROMPTS, clips, expected
from tests.host_recipes import recipes

BUILD, SCORE = recipes(dancegrpo)
NUM_GENERATIONS = 3


def built():
    """Run the docstring's first lines on the embedded judge."""
    names = {"device": "cpu"}
    exec(BUILD.replace("path/to/judge", "toy").replace("fps=16", f"fps={FPS}"), names)
    return names["reward_model"]


def sample_reference_model(decoded, caption, reward_model):
    """The host's loop: one clip at a time is decoded, written and scored; then the rewards are joined."""
    all_rewards = []
    for index in range(len(decoded)):
        names = {
            "all_rewards": all_rewards,
            "reward_model": reward_model,
            "decoded_video": decoded[index : index + 1],  # numpy [1, T, H, W, C], of diffusers' video processor
            "batch_caption": [caption[index]],
        }
        exec(SCORE, names)
    return torch.cat(all_rewards, dim=0)


def train_one_step(policy, optimizer, decoded, caption, reward_model, accumulation=2):
    """The host's step: rewards, advantages of each group, clipped policy loss, a step after some samples."""
    optimizer.zero_grad()
    rewards = sample_reference_model(decoded, caption, reward_model).to(torch.float32)
    advantages = torch.zeros_like(rewards)
    for start in range(0, len(rewards), NUM_GENERATIONS):
        group = rewards[start : start + NUM_GENERATIONS]
        advantages[start : start + NUM_GENERATIONS] = (group - group.mean()) / (group.std() + 1e-8)
    for i, advantage in enumerate(advantages):
        log_prob = policy(torch.ones(1, 4)).sum()
        ratio, advantage = torch.exp(log_prob - log_prob.detach()), advantage.clamp(-5, 5)
        loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - 1e-4, 1 + 1e-4)) / accumulation
        loss.backward()
        if (i + 1) % accumulation == 0:
            torch.nn.utils.clip_grad_norm_(policy.parameters(), max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()
    return rewards


@pytest.fixture
def policy():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 4)


def decoded_videos(num=6):
    """Return clips as the host's video processor gives them: numpy [B, T, H, W, C] in [0, 1]."""
    return clips(num).permute(0, 1, 3, 4, 2).numpy().astype(numpy.float32)


def captions():
    return [prompt for prompt in PROMPTS[:2] for _ in range(NUM_GENERATIONS)]


def test_the_recipe_rewards_a_step_and_the_policy_learns(judge, policy):
    before, optimizer = policy.weight.detach().clone(), torch.optim.SGD(policy.parameters(), lr=0.1)
    rewards = train_one_step(policy, optimizer, decoded_videos(), captions(), built())
    assert rewards.tolist() == expected(judge, clips(6), captions())
    assert policy.weight.isfinite().all() and not torch.equal(policy.weight, before)


def nan_reward(frames, caption):
    """A reward as this host would take it: a NaN of which nobody hears."""
    return torch.tensor([math.nan if numpy.isnan(frames).any() else float(frames.mean())])


def test_a_nan_that_reaches_the_host_ruins_all_weights(policy):
    videos = decoded_videos()
    videos[4, 1, 3, 3, 0] = math.nan
    train_one_step(policy, torch.optim.SGD(policy.parameters(), lr=0.1), videos, captions(), nan_reward)
    assert policy.weight.isnan().all()


@pytest.mark.parametrize("bad", [0, 4])
def test_one_bad_clip_ends_the_run_with_its_reason_before_any_weight_changes(policy, bad):
    videos, before = decoded_videos(), policy.weight.detach().clone()
    videos[bad, 1, 3, 3, 0] = math.nan
    with pytest.raises(SystemExit) as stopped:
        try:
            train_one_step(policy, torch.optim.SGD(policy.parameters(), lr=0.1), videos, captions(), built())
        except Exception:  # noqa: BLE001  # the host's other trainers put -1 in its place
            pytest.fail("the run would go on")
    assert isinstance(stopped.value, TrainingStop)
    assert "not finite" in stopped.value.code and repr(captions()[bad]) in stopped.value.code
    assert torch.equal(policy.weight, before) and policy.weight.grad is None


def test_a_judge_without_a_score_ends_the_run(mute):
    with pytest.raises(TrainingStop, match=r"five level words.* The clip's prompt is 'a red circle moving left'\."):
        clip_reward(mute, fps=FPS)(decoded_videos()[0], PROMPTS[0])


def test_frames_may_be_bytes_or_tensors_and_one_frame_is_a_still(judge):
    reward = clip_reward(judge, fps=FPS)
    frames = (decoded_videos(1)[0] * 255).round().astype(numpy.uint8)
    assert reward(frames, PROMPTS[0]).shape == (1,)
    torch.testing.assert_close(reward(torch.from_numpy(frames), PROMPTS[0]), reward(frames, PROMPTS[0]))
    still = clip_reward(judge, fps=FPS, weights={"visual_quality": 1.0})(decoded_videos(1)[0][:1], PROMPTS[0])
    assert still.tolist() == expected(judge, clips(1)[:, :1], PROMPTS[:1], weights={"visual_quality": 1.0})


def test_a_gpu_is_named_by_its_number_as_the_host_does(monkeypatch):
    asked = []
    monkeypatch.setattr(dancegrpo, "load_judge", lambda judge, device: asked.append(device))
    for device in (3, "cpu", torch.device("cpu"), None):
        clip_reward("toy", fps=FPS, device=device)
    assert asked == ["cuda:3", "cpu", torch.device("cpu"), None]
