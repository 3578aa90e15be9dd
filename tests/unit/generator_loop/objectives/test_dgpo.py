"""DGPO's loss by hand and against automatic differentiation of the published one, and its gradient's sign."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from generator_loop.objectives.dgpo import DGPO, DGPOConfig, dgpo_loss, is_clipped
from generator_loop.objectives.whole_groups import GroupBatch
from generator_loop.records import Conditioning, Draw
from generator_loop.rewards.advantages import group_advantages
from tests.toy_flow import LinearField, policies, toy_rollout, toy_scores

LOOSE = {"clip_range": 1e6, "kl_coef": 0.0}


def planned(rewards: torch.Tensor, *, micro_batch_size: int = 100, **settings) -> tuple[DGPO, GroupBatch]:
    objective, rollout = DGPO(DGPOConfig(**settings)), toy_rollout()
    advantages = group_advantages(rewards, group_size=4)
    steps = objective.plan(rollout, toy_scores(rewards), advantages, draw=Draw(0, 0), micro_batch_size=micro_batch_size)
    (batch,) = next(iter(steps))
    return objective, batch


def gradient(policy: LinearField) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])


def test_loss_and_slope_have_their_closed_form() -> None:
    margin, advantages = torch.tensor([0.0, math.log(3) / 10]), torch.tensor([2.0, -2.0])
    losses, slopes = dgpo_loss(margin, advantages, beta_mean=10.0)
    # sigmoid(log 3) is 3/4
    assert_close(losses, torch.tensor([math.log(2) / 10, -math.log(0.75) / 10]))
    assert_close(slopes, torch.tensor([0.5 * 2.0, 0.25 * -2.0]))


def test_a_ratio_is_clipped_in_the_direction_of_its_advantage_alone() -> None:
    ratio = torch.tensor([1.2, 0.8, 1.2, 0.8, 1.2, 0.8, 1.05])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0, 0.0, 1.0])
    assert is_clipped(ratio, advantages, clip_range=0.1).tolist() == [True, False, False, True, False, False, False]


@pytest.mark.parametrize("missing", [False, True])
def test_the_gradient_is_that_of_the_published_group_preference(missing: bool) -> None:
    rewards = torch.tensor([0.1, 0.9, 0.5, 0.4, 0.0, 0.2, 0.6, float("nan") if missing else 1.0])
    objective, batch = planned(rewards, beta_mean=3.0, **LOOSE)
    policy, old, reference = (LinearField(seed=seed) for seed in (1, 3, 2))
    metrics = objective.backward(batch, policies(policy, old, reference), scale=2.0)
    advantages, losses = group_advantages(rewards, group_size=4).values, []
    for start in (0, 4):
        score = torch.zeros(())
        members = [place for place in range(start, start + 4) if math.isfinite(rewards[place])]
        for place in members:
            one = next(
                row for row in range(len(batch)) if torch.equal(batch.latents[row], toy_rollout().latents[place])
            )
            sigma, noise = batch.sigma[one], batch.noise[one]
            at = (1 - sigma) * batch.latents[one] + sigma * noise
            given = at[None], sigma[None], Conditioning({"text": batch.cond.tensors["text"][one][None]})
            target = noise - batch.latents[one]
            error, base = ((field(*given)[0] - target).square().mean() for field in (policy, reference))
            score = score + advantages[place] * (error - base.detach()) / len(members)
        losses += [-logsigmoid(-3.0 * score) / 3.0] * len(members)
    expected = torch.autograd.grad(2.0 * torch.stack(losses).mean(), list(policy.parameters()))
    assert_close(gradient(policy), torch.cat([one.flatten() for one in expected]), atol=1e-6, rtol=1e-4)
    assert metrics["loss"] == pytest.approx(float(torch.stack(losses).mean().detach()), rel=1e-5)


def test_a_step_lowers_the_errors_of_good_samples_against_those_of_bad_ones() -> None:
    rewards = torch.linspace(0, 1, 8)
    objective, batch = planned(rewards, **LOOSE)
    policy, reference = LinearField(), LinearField()
    who = policies(policy, reference, reference)
    before = objective.backward(batch, who, scale=1.0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter -= 1e-4 * parameter.grad
    after = objective.backward(batch, who, scale=1.0)
    assert before["margin"] == pytest.approx(0, abs=1e-6) and before["loss"] == pytest.approx(math.log(2) / 100)
    assert after["margin"] > 0 and after["loss"] < before["loss"] and after["implicit_accuracy"] == 1


def test_all_samples_of_a_prompt_share_their_noise_and_no_other_prompts() -> None:
    _, batch = planned(torch.linspace(0, 1, 8))
    for values in (batch.noise, batch.sigma):
        assert torch.equal(values[:4], values[:1].expand_as(values[:4]))
        assert not torch.equal(values[0], values[4])
    assert batch.sigma.min() >= 0.3


def test_a_clipped_sample_pulls_no_further_but_counts_in_its_group() -> None:
    rewards = torch.linspace(0, 1, 8)
    objective, batch = planned(rewards, clip_range=0.05, kl_coef=0.0, beta_mean=1.0)
    policy, old, reference = (LinearField(seed=seed) for seed in (1, 2, 3))
    metrics = objective.backward(batch, policies(policy, old, reference), scale=1.0)
    level, target = batch.sigma[:, None], batch.noise - batch.latents
    at = (1 - level) * batch.latents + level * batch.noise, batch.sigma, batch.cond
    errors = {
        name: (field(*at) - target).square().mean(1)
        for name, field in zip("por", (policy, old, reference), strict=True)
    }
    ratio = (errors["o"] - errors["p"]).detach().exp()
    good = batch.advantages > 0
    kept = ~torch.where(good, ratio > 1.05, ratio < 0.95)
    assert 0 < int(kept.sum()) < 8
    excess = (errors["p"] - errors["r"]).detach()
    score = (batch.advantages * excess).view(2, 4).mean(1, keepdim=True).expand(2, 4).flatten()
    pulled = (torch.sigmoid(score) * batch.advantages * errors["p"])[kept].sum() / 8
    expected = torch.autograd.grad(pulled, list(policy.parameters()))
    assert_close(gradient(policy), torch.cat([one.flatten() for one in expected]), atol=1e-6, rtol=1e-4)
    assert metrics["clip_fraction"] == pytest.approx(1 - float(kept.float().mean()))
    assert metrics["margin"] == pytest.approx(-float(score.mean()), rel=1e-5)


def test_the_penalty_pulls_towards_the_reference() -> None:
    rewards, gradients, losses = torch.linspace(0, 1, 8), [], []
    for kl_coef in (0.0, 0.5):
        objective, batch = planned(rewards, clip_range=1e6, kl_coef=kl_coef)
        policy, old, reference = (LinearField(seed=seed) for seed in (1, 3, 2))
        metrics = objective.backward(batch, policies(policy, old, reference), scale=1.0)
        gradients.append(gradient(policy))
        losses.append(metrics["loss"])
    level = batch.sigma[:, None]
    at = (1 - level) * batch.latents + level * batch.noise, batch.sigma, batch.cond
    kl = (policy(*at) - reference(*at).detach()).square().mean()
    found_kl = float(kl.detach())
    expected = torch.autograd.grad(0.5 * kl, list(policy.parameters()))
    assert_close(gradients[1] - gradients[0], torch.cat([one.flatten() for one in expected]), atol=1e-5, rtol=1e-4)
    assert metrics["kl"] == pytest.approx(found_kl, rel=1e-5)
    assert losses[1] - losses[0] == pytest.approx(0.5 * found_kl, rel=1e-4)


def test_advantages_beyond_the_clip_count_as_the_clip() -> None:
    rewards, losses = torch.tensor([0.0, 0.0, 0.0, 1.0] * 2), []
    policy, reference = LinearField(seed=1), LinearField(seed=2)
    for clip in (0.5, 5.0):
        objective, batch = planned(rewards, advantage_clip=clip, **LOOSE)
        losses.append(objective.backward(batch, policies(policy, reference, reference), scale=1.0)["margin"])
    clipped = DGPO(DGPOConfig(advantage_clip=5.0, **LOOSE))
    batch.advantages.clamp_(-0.5, 0.5)
    assert losses[0] != pytest.approx(losses[1])
    again = clipped.backward(batch, policies(policy, reference, reference), scale=1.0)["margin"]
    assert losses[0] == pytest.approx(again)


@pytest.mark.parametrize(
    "setting",
    [
        {"beta_mean": 0.0},
        {"clip_range": -0.1},
        {"advantage_clip": 0.0},
        {"kl_coef": -1.0},
        {"num_updates": 0},
        {"sigma_range": (0.9, 0.3)},
        {"sigma_shift": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(setting: dict) -> None:
    with pytest.raises(ValueError, match=f"objective.{next(iter(setting))}"):
        DGPOConfig(**setting)
