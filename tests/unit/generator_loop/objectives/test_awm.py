"""AWM's likelihood, clip and loss by hand, against a naive form of the published loss, and its gradient's sign."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from generator_loop.flow.path import noised
from generator_loop.objectives.awm import AWM, AWMBatch, AWMConfig, awm_loss, matching_log_prob
from generator_loop.records import Conditioning, Draw
from generator_loop.rewards.advantages import group_advantages
from tests.toy_flow import LinearField, policies, toy_rollout, toy_scores

PLAIN = {"old_kl_coef": 0.0, "kl_coef": 0.0}
NAN = float("nan")


def random_batch(num: int = 4, dim: int = 3, seed: int = 0) -> AWMBatch:
    stream = torch.Generator().manual_seed(seed)
    latents, noise, text = torch.randn(3, num, dim, generator=stream)
    sigma = 0.1 + 0.8 * torch.rand(num, generator=stream)
    return AWMBatch(latents, noise, sigma, torch.linspace(-1, 1, num), Conditioning({"text": text}))


def plan(rewards: torch.Tensor, rollout, *, micro_batch_size: int = 3, **settings):
    advantages = group_advantages(rewards, group_size=rollout.group_size)
    steps = AWM(AWMConfig(**settings)).plan(
        rollout, toy_scores(rewards), advantages, draw=Draw(0, 0), micro_batch_size=micro_batch_size
    )
    return [list(step) for step in steps]


def test_the_likelihood_is_that_of_the_error_to_a_power() -> None:
    error, sigma = torch.tensor([0.0, 0.0625, 16.0]), torch.tensor([0.5, 0.5, 0.25])
    # fourth roots are 0.5 and 2, that of the floor 1e-10 is 10^-2.5
    floor = 10**-2.5
    found = matching_log_prob(error, sigma, error_power=0.25, sigma_power=1.0)
    assert_close(found, torch.tensor([0.0, -2 * (0.5 - floor), -(2 - floor)]), atol=1e-6, rtol=1e-5)
    plain = matching_log_prob(error, sigma, error_power=1.0, sigma_power=0.0)
    assert_close(plain, -error)
    assert_close(matching_log_prob(error, sigma, error_power=1.0, sigma_power=2.0), -error * sigma.square())


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope"),
    [
        (0.5, 1.0, -0.5, -0.5),
        (0.5, 1.5, -0.6, 0.0),  # a gain beyond 1.2 counts no further
        (0.5, 0.5, -0.25, -0.5),  # but a loss does
        (-0.5, 1.5, 0.75, 0.5),
        (-0.5, 0.5, 0.4, 0.0),
    ],
)
def test_gains_beyond_the_clip_range_do_not_count(advantage: float, ratio: float, loss: float, slope: float) -> None:
    value = torch.tensor([ratio], requires_grad=True)
    found = awm_loss(value, torch.tensor([advantage]), clip_range=0.2)
    assert found.item() == pytest.approx(loss)
    assert torch.autograd.grad(found.sum(), value)[0].item() == pytest.approx(slope)


def test_the_loss_equals_the_authors_form_sample_by_sample() -> None:
    batch, policy, old, reference = random_batch(), *(LinearField(seed=seed) for seed in (1, 2, 3))
    expected = []
    for x0, eps, s, a, text in zip(
        batch.latents, batch.noise, batch.sigma, batch.advantages, batch.cond.tensors["text"], strict=True
    ):
        at = ((1 - s) * x0 + s * eps)[None], s[None], Conditioning({"text": text[None]})
        v, v_old, v_ref = (field(*at)[0] for field in (policy, old, reference))
        target = eps - x0

        def log_prob(velocity, s=s, target=target):
            return -s * ((velocity - target).square().mean() ** 0.25 - 1e-10**0.25) / 0.25

        ratio = float((log_prob(v) - log_prob(v_old)).exp().detach())
        policy_loss = max(-float(a) * ratio, -float(a) * min(max(ratio, 0.9), 1.1))
        expected.append(policy_loss + 0.5 * (v - v_old).square().mean() + 0.25 * (v - v_ref).square().mean())
    objective = AWM(AWMConfig(clip_range=0.1, old_kl_coef=0.5, kl_coef=0.25))
    found = objective.loss(batch, policies(policy, old, reference))
    assert_close(found.loss, torch.stack(expected).mean(), atol=1e-4, rtol=1e-4)  # roots of rounded errors
    assert 0 < found.metrics["clip_fraction"] <= 1


def test_at_the_old_policy_the_gradient_is_that_of_advantage_weighted_matching() -> None:
    batch, policy = random_batch(), LinearField(seed=1)
    settings = {"error_power": 1.0, "sigma_power": 1.0, **PLAIN}
    loss = AWM(AWMConfig(**settings)).loss(batch, policies(policy)).loss
    (found,) = torch.autograd.grad(loss, policy.weight)
    noisy, target = noised(batch.latents, batch.noise, batch.sigma)
    error = (policy(noisy, batch.sigma, batch.cond) - target).square().mean(1)
    (expected,) = torch.autograd.grad((batch.advantages * batch.sigma * error).mean(), policy.weight)
    assert expected.abs().max() > 0.01
    assert_close(found, expected)


@pytest.mark.parametrize(("advantage", "sign"), [(1.0, -1), (-1.0, 1)])
def test_a_step_from_the_old_policy_nears_good_samples_and_leaves_bad_ones(advantage: float, sign: int) -> None:
    policy, batch = LinearField(), random_batch(num=1)
    batch = AWMBatch(batch.latents, batch.noise, batch.sigma, torch.tensor([advantage]), batch.cond)
    objective, who = AWM(AWMConfig(**PLAIN)), policies(policy, LinearField())
    before = objective.backward(batch, who, scale=1.0)["error"]
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter -= 1e-3 * parameter.grad
    assert (objective.loss(batch, who).metrics["error"] - before) * sign > 0


@pytest.mark.parametrize("coefficient", ["old_kl_coef", "kl_coef"])
def test_each_penalty_has_a_gradient_towards_its_own_policy(coefficient: str) -> None:
    batch, policy, old, reference = random_batch(), *(LinearField(seed=seed) for seed in (1, 2, 3))
    who, gradients = policies(policy, old, reference), []
    for weight in (0.0, 0.5):
        loss = AWM(AWMConfig(**{**PLAIN, coefficient: weight})).loss(batch, who).loss
        gradients.append(torch.autograd.grad(loss, policy.weight)[0])
    noisy, _ = noised(batch.latents, batch.noise, batch.sigma)
    held = (old if coefficient == "old_kl_coef" else reference)(noisy, batch.sigma, batch.cond).detach()
    gap = (policy(noisy, batch.sigma, batch.cond) - held).square().mean()
    (expected,) = torch.autograd.grad(0.5 * gap, policy.weight)
    assert_close(gradients[1] - gradients[0], expected, atol=1e-5, rtol=1e-4)


def test_advantages_are_clipped_and_brought_to_one() -> None:
    rewards = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.5, NAN, 0.5, 0.5])
    (batches,) = plan(rewards, toy_rollout(), advantage_clip=1.0)
    values = group_advantages(rewards, group_size=4).values
    usable = [0, 1, 2, 3, 4, 6, 7]
    assert values.max() > 1
    assert_close(torch.cat([batch.advantages for batch in batches]), values[usable].clamp(-1, 1))
    (halved,) = plan(rewards, toy_rollout(), advantage_clip=4.0)
    assert_close(torch.cat([batch.advantages for batch in halved]), (values[usable] / 4).clamp(-1, 1))


def test_noise_and_sigma_are_keyed_by_prompt_and_sample_whatever_the_micro_batch() -> None:
    rewards = torch.linspace(0, 1, 8)
    (both,) = plan(rewards, toy_rollout(num_prompts=2), micro_batch_size=3)
    (second,) = plan(rewards[4:], toy_rollout(num_prompts=1, first_id=1), micro_batch_size=1)
    for name in ("latents", "noise", "sigma"):
        whole = torch.cat([getattr(batch, name) for batch in both])
        assert torch.equal(whole[4:], torch.cat([getattr(batch, name) for batch in second]))
        assert len(whole.flatten().unique()) == whole.numel()


def test_noise_and_sigma_are_fresh_for_each_update() -> None:
    first, second = plan(torch.linspace(0, 1, 8), toy_rollout(), micro_batch_size=8, num_updates=2)
    for name in ("noise", "sigma"):
        values = torch.cat([getattr(first[0], name), getattr(second[0], name)]).flatten()
        assert len(values.unique()) == len(values)


def test_without_any_usable_sample_there_is_no_batch() -> None:
    assert plan(torch.full((8,), NAN), toy_rollout(), num_updates=2) == [[], []]


@pytest.mark.parametrize(
    "setting",
    [
        {"error_power": 0.0},
        {"sigma_power": -1.0},
        {"clip_range": 0.0},
        {"advantage_clip": -5.0},
        {"old_kl_coef": -1.0},
        {"kl_coef": -1e-3},
        {"num_updates": 0},
        {"sigma_range": (0.0, 1.0)},
        {"sigma_shift": 0.0},
        {"clip_range": math.nan},
    ],
)
def test_settings_out_of_range_are_refused(setting: dict) -> None:
    with pytest.raises(ValueError, match=f"objective.{next(iter(setting))}"):
        AWMConfig(**setting)
