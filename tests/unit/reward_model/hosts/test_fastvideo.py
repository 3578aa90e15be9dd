"""FastVideo's DiffusionNFT: a hand-written double of its scoring step, built by the docstring's lines, meets the judge."""

from __future__ import annotations

import math
from ast import literal_eval

import pytest
import torch
import yaml

from reward_model.cli import build_parser
from reward_model.hosts import fastvideo
from reward_model.hosts.fastvideo import reward_scorer
from tests.host_clips import FPS, PROMPTS, clips, expected
from tests.host_recipes import recipes

BUILD, NAMES, METHOD, SERVE, SERVICE = recipes(fastvideo)


class MultiRewardScorer:
    """The host's weighted sum of scorers."""

    def __init__(self, reward_weights, *, scorers):
        self.reward_weights, self.scorers = dict(reward_weights), dict(scorers)
        if unsupported := sorted(set(self.reward_weights) - set(self.scorers)):
            raise ValueError(f"Unsupported reward(s): {unsupported}")

    @torch.no_grad()
    def __call__(self, media, prompts):
        total, details = None, {}
        for name, weight in self.reward_weights.items():
            scores = self.scorers[name](media, prompts).detach().float()
            if scores.ndim != 1 or int(scores.shape[0]) != len(prompts):
                raise ValueError(f"Reward {name!r} must return shape [{len(prompts)}], got {tuple(scores.shape)}")
            details[name] = scores
            total = scores * weight if total is None else total.to(scores.device) + scores * weight
        return {**details, "avg": total}


def build_multi_reward_scorer(reward_weights, *, device):
    """The host's function with the docstring's lines in it."""
    names = {"device": device}
    exec(BUILD.replace("path/to/judge", "toy").replace("fps=16", f"fps={FPS}"), names)
    return MultiRewardScorer(reward_weights, scorers=names["available"])


class DiffusionNFT:
    """The host's trainer, as far as it scores and steps: sampled batches, rewards, advantages of each prompt, a step."""

    def __init__(self, method):
        self.reward_fn = {str(name): float(weight) for name, weight in method["reward_fn"].items()}
        if unsupported := sorted(set(self.reward_fn) - literal_eval(NAMES)):
            raise ValueError(f"Unsupported DiffusionNFT reward(s): {unsupported}")
        torch.manual_seed(0)
        self.policy = torch.nn.Linear(4, 4)
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-2)
        self.scorer = build_multi_reward_scorer(self.reward_fn, device="cpu")

    def managed_train_step(self, items):
        media = torch.cat([item["media"] for item in items], dim=0)
        prompts = [prompt for item in items for prompt in item["prompts"]]
        rewards = self.scorer(media, prompts)
        avg = rewards["avg"]
        advantages = (avg - avg.mean()) / (avg.std(unbiased=False) + 1e-4)
        (advantages * self.policy(torch.ones(len(avg), 4)).sum(1)).sum().backward()
        self.optimizer.step()
        return rewards


def sampled(bad=None):
    """Return two batches as the host's sampler leaves them: media [B, C, T, H, W] on the CPU, clamped to [0, 1]."""
    media = clips().permute(0, 2, 1, 3, 4).clone()
    if bad is not None:
        media[bad, 1, 2, 3, 3] = math.nan
    media = (media * 2 - 1).div(2).add(0.5).clamp(0, 1)
    return [{"media": media[:2], "prompts": PROMPTS[:2]}, {"media": media[2:], "prompts": PROMPTS[2:]}]


def trainer():
    return DiffusionNFT(yaml.safe_load(METHOD)["method"])


def test_the_recipe_rewards_whole_videos(judge):
    host = trainer()
    before = host.policy.weight.detach().clone()
    rewards = host.managed_train_step(sampled())
    assert rewards["avg"].tolist() == rewards["video_judge"].tolist() == expected(judge)
    assert not torch.equal(host.policy.weight, before)


@pytest.mark.parametrize("bad", [0, 2])
def test_one_bad_clip_stops_the_step_with_its_reason_before_any_weight_changes(bad):
    host = trainer()
    before = host.policy.weight.detach().clone()
    with pytest.raises(RuntimeError, match=f"1 of 3 rewards are unavailable: video {bad}: .*not finite"):
        host.managed_train_step(sampled(bad))
    assert torch.equal(host.policy.weight, before) and host.policy.weight.grad is None


def test_stills_are_scored_and_other_media_refused(judge):
    weights = {"visual_quality": 1.0}
    scorer = reward_scorer(judge, fps=FPS, weights=weights)
    stills = clips()[:, 0]
    assert scorer(stills, PROMPTS).tolist() == expected(judge, clips()[:, :1], weights=weights)
    assert scorer(stills.unsqueeze(2), PROMPTS).tolist() == expected(judge, clips()[:, :1], weights=weights)
    with pytest.raises(ValueError, match="media must be"):
        scorer(stills[0], PROMPTS)
    with pytest.raises(ValueError, match="3 channels"):
        scorer(clips(), PROMPTS)  # [B, T, C, H, W]
    with pytest.raises(RuntimeError, match=r"3 of 3 .*must lie in \[0, 1\]"):
        scorer(stills * 2 - 1, PROMPTS)


def test_the_service_of_the_recipe_has_the_address_that_the_trainer_asks():
    program, *words = SERVE.split()
    args = build_parser(words).parse_args(words)
    assert program == "video-judge" and args.fastvideo and args.judge == "path/to/judge"
    settings = yaml.safe_load(SERVICE)["method"]["reward"]
    assert settings["endpoint_url"] == f"http://{args.host}:{args.port}"
