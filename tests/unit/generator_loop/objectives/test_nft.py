"""DiffusionNFT against a naive version, its gradient at the start, and how batches are laid out."""

import pytest
import torch
from torch.testing import assert_close

from generator_loop.flow.path import noised
from generator_loop.objectives.nft import NFT, NFTBatch, NFTConfig, nft_loss
from generator_loop.records import Conditioning, Draw
from generator_loop.rewards.advantages import group_advantages, optimality
from tests.toy_flow import LinearField, policies, toy_rollout, toy_scores


def random_batch(num=4, dim=3, seed=0):
    noise = torch.Generator().manual_seed(seed)
    latents, eps, text = torch.randn(3, num, dim, generator=noise)
    sigma, good = 0.1 + 0.8 * torch.rand(2, num, generator=noise)
    return NFTBatch(latents=latents, noise=eps, sigma=sigma, cond=Conditioning({"text": text}), optimality=good)


def test_loss_equals_the_authors_form_in_x0_space():
    batch, policy, old = random_batch(), LinearField(seed=1), LinearField(seed=2)
    beta, clip, expected = 0.3, 5.0, []
    for x0, eps, sigma, text, r in zip(
        batch.latents, batch.noise, batch.sigma, batch.cond.tensors["text"], batch.optimality, strict=True
    ):
        x = (1 - sigma) * x0 + sigma * eps
        row = (x[None], sigma[None], Conditioning({"text": text[None]}))
        v, v_old = policy(*row)[0], old(*row)[0]
        x0_good = x - sigma * ((1 - beta) * v_old + beta * v)
        x0_bad = x - sigma * ((1 + beta) * v_old - beta * v)
        good = (x0_good - x0).square().mean() / (x0_good - x0).abs().mean()
        bad = (x0_bad - x0).square().mean() / (x0_bad - x0).abs().mean()
        expected.append((r * good + (1 - r) * bad) * clip / beta)
    objective = NFT(NFTConfig(beta=beta, advantage_clip=clip))
    assert_close(objective.loss(batch, policies(policy, old)).loss, torch.stack(expected).mean())


@pytest.mark.parametrize("r", [0.0, 0.25, 0.5, 1.0])
def test_gradient_at_the_old_policy_has_the_closed_form(r):
    noise = torch.Generator().manual_seed(0)
    old, target = torch.randn(2, 1, 6, generator=noise)
    sigma, beta = torch.tensor([0.4]), 0.1
    velocity = old.clone().requires_grad_(True)
    nft_loss(velocity, old, target, sigma, torch.tensor([r]), beta=beta).sum().backward()
    # 2 beta (2r - 1)(v_old - v*) / beta, averaged over elements, in x_0 units over the error's mean absolute value
    weight = (sigma * (old - target)).abs().mean()
    expected = 2 * (2 * r - 1) * (old - target) * sigma**2 / weight / old.numel()
    assert_close(velocity.grad, expected, atol=1e-6, rtol=1e-5)  # the error x_0 - x*, some 1, is rounded by 6e-8


def test_a_step_from_the_old_policy_nears_good_samples_and_leaves_bad_ones():
    for r, sign in ((1.0, -1), (0.0, 1)):
        policy, old = LinearField(), LinearField()
        batch = random_batch(num=1)
        batch = NFTBatch(batch.latents, batch.noise, batch.sigma, batch.cond, torch.tensor([r]))
        noisy, target = noised(batch.latents, batch.noise, batch.sigma)

        def error(policy=policy, batch=batch, noisy=noisy, target=target):
            return (policy(noisy, batch.sigma, batch.cond) - target).square().mean()

        before = error().item()
        NFT(NFTConfig()).backward(batch, policies(policy, old), scale=1.0)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter -= 1e-3 * parameter.grad
        assert (error().item() - before) * sign > 0


def test_kl_pulls_towards_the_reference_with_its_own_gradient():
    batch, policy, reference = random_batch(), LinearField(seed=1), LinearField(seed=2)
    found = []
    for kl_coef in (0.0, 0.5):
        policy.zero_grad()
        output = NFT(NFTConfig(kl_coef=kl_coef)).loss(batch, policies(policy, policy, reference))
        output.loss.backward()
        found.append((output, policy.weight.grad.clone()))
    noisy, _ = noised(batch.latents, batch.noise, batch.sigma)
    kl = (policy(noisy, batch.sigma, batch.cond) - reference(noisy, batch.sigma, batch.cond).detach()).square().mean()
    (expected,) = torch.autograd.grad(0.5 * kl, policy.weight)
    assert expected.abs().max() > 0.01
    assert_close(found[1][1] - found[0][1], expected, atol=1e-5, rtol=1e-5)
    assert found[1][0].metrics["kl"] == pytest.approx(kl.item(), rel=1e-5)
    assert found[0][0].metrics["kl"] == 0


def test_policy_shift_is_zero_before_the_first_update():
    policy = LinearField()
    assert NFT(NFTConfig()).loss(random_batch(), policies(policy, LinearField())).metrics["policy_shift"] == 0


def test_optimality_maps_clipped_advantages_to_the_unit_interval():
    found = optimality(torch.tensor([-9.0, -2.0, 0.0, 1.0, 2.0, 9.0]), clip=2.0)
    assert_close(found, torch.tensor([0.0, 0.0, 0.5, 0.75, 1.0, 1.0]))


def plan(config, rollout, rewards, *, step=0, micro_batch_size=32):
    scored = toy_scores(rewards)
    advantages = group_advantages(rewards, group_size=rollout.group_size)
    steps = NFT(config).plan(rollout, scored, advantages, draw=Draw(0, step), micro_batch_size=micro_batch_size)
    return [list(batches) for batches in steps]


def test_each_update_takes_the_asked_number_of_samples_of_every_group():
    rollout = toy_rollout(num_prompts=3, group_size=8)
    steps = plan(NFTConfig(num_updates=2, samples_per_group=4), rollout, torch.randn(24), micro_batch_size=5)
    assert [[len(batch) for batch in batches] for batches in steps] == [[5, 5, 2], [5, 5, 2]]
    rows = [
        [(rollout.latents == row).all(1).nonzero().item() for row in torch.cat([b.latents for b in s])] for s in steps
    ]
    assert all(sum(row // 8 == group for row in step) == 4 for step in rows for group in range(3))
    assert all(len(set(step)) == 12 for step in rows) and rows[0] != rows[1]


def test_samples_without_reward_are_left_out():
    rollout, nan = toy_rollout(num_prompts=2, group_size=4), float("nan")
    rewards = torch.tensor([0.1, nan, 0.5, nan, nan, nan, nan, nan])
    (batches,) = plan(NFTConfig(num_updates=1), rollout, rewards)
    assert {tuple(row.tolist()) for row in batches[0].latents} == {
        tuple(rollout.latents[row].tolist()) for row in (0, 2)
    }
    (nothing,) = plan(NFTConfig(num_updates=1), rollout, torch.full((8,), nan))
    assert nothing == []


def test_a_samples_noise_does_not_depend_on_the_other_prompts_or_the_micro_batch():
    rewards = torch.linspace(0, 1, 8)
    config = NFTConfig(num_updates=1, samples_per_group=4)
    (both,) = plan(config, toy_rollout(num_prompts=2), rewards)
    (second,) = plan(config, toy_rollout(num_prompts=1, first_id=1), rewards[4:], micro_batch_size=3)
    for name in ("latents", "noise", "sigma"):
        assert torch.equal(getattr(both[0], name)[4:], torch.cat([getattr(batch, name) for batch in second]))


def test_noise_differs_between_rounds_updates_and_the_start_of_sampling():
    rollout, rewards = toy_rollout(num_prompts=1), torch.linspace(0, 1, 4)
    steps = plan(NFTConfig(num_updates=2), rollout, rewards) + plan(NFTConfig(num_updates=2), rollout, rewards, step=1)
    noises = [batches[0].noise for batches in steps]
    start = torch.stack([torch.randn(3, generator=Draw(0, 0).generator(0, sample)) for sample in range(4)])
    values = torch.cat([*noises, start]).flatten()
    assert len(values.unique()) == len(values)


def test_noise_levels_stay_in_range_and_follow_the_shift():
    rollout, rewards = toy_rollout(num_prompts=40), torch.randn(160)
    plain, shifted = (
        torch.cat([batch.sigma for batch in plan(NFTConfig(num_updates=1, sigma_shift=shift), rollout, rewards)[0]])
        for shift in (1.0, 3.0)
    )
    assert plain.min() >= 0.01 and plain.max() <= 0.99 and 0.4 < plain.mean() < 0.6
    assert_close(shifted, 3 * plain / (1 + 2 * plain))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beta": 0.0}, r"objective.beta must be > 0, got 0.0"),
        ({"kl_coef": -1.0}, "objective.kl_coef must be >= 0"),
        ({"sigma_range": (0.5, 0.2)}, "objective.sigma_range must be two rising"),
        ({"num_updates": 0}, "objective.num_updates must be > 0"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        NFTConfig(**setting)
