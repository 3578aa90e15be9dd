"""Flow-RWR's weights and loss, by hand."""

import math

import pytest
import torch

from generator_loop.objectives.rwr import RWR, RWRConfig, group_weights
from generator_loop.records import Draw
from generator_loop.rewards.advantages import group_advantages
from tests.toy_flow import LinearField, policies, toy_rollout, toy_scores


def plan(rewards, rollout, **settings):
    advantages = group_advantages(rewards, group_size=4)
    objective = RWR(RWRConfig(**settings))
    steps = objective.plan(rollout, toy_scores(rewards), advantages, draw=Draw(0, 0), micro_batch_size=3)
    return objective, [list(step) for step in steps]


def test_weights_are_exponential_and_of_mean_one_over_the_usable_samples():
    advantages = torch.tensor([0.0, math.log(3.0), 5.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    usable = torch.tensor([True, True, False, True, True, True, True, True])
    found = group_weights(advantages, usable, group_size=4, temperature=1.0)
    torch.testing.assert_close(found, torch.tensor([0.6, 1.8, 0.0, 0.6, 1.0, 1.0, 1.0, 1.0]))
    colder = group_weights(advantages, usable, group_size=4, temperature=0.5)
    torch.testing.assert_close(colder[:4], torch.tensor([3 / 11, 27 / 11, 0.0, 3 / 11]))
    assert (
        group_weights(advantages[:4], torch.zeros(4, dtype=torch.bool), group_size=4, temperature=1.0).tolist()
        == [0] * 4
    )


def test_the_loss_is_the_weighted_velocity_error():
    rewards = torch.tensor([0.1, 0.9, float("nan"), 0.4, 0.5, 0.5, 0.5, 0.5])
    rollout, field = toy_rollout(), LinearField()
    objective, (step,) = plan(rewards, rollout, anchor="none")
    assert [len(batch) for batch in step] == [3, 3, 1]
    batch = step[0]
    level = batch.sigma[:, None]
    noisy = (1 - level) * batch.latents + level * batch.noise
    error = (field(noisy, batch.sigma, batch.cond) - (batch.noise - batch.latents)).square().mean(1)
    output = objective.loss(batch, policies(field))
    torch.testing.assert_close(output.loss, (batch.weights * error).mean())
    assert output.metrics["error"] == pytest.approx(float(error.mean()))


def test_the_anchor_takes_the_place_of_imitating_all_samples_alike():
    rewards, rollout = torch.linspace(0, 1, 8), toy_rollout()
    field, old = LinearField(), LinearField(seed=1)
    objective, (step,) = plan(rewards, rollout)
    batch = step[0]
    level = batch.sigma[:, None]
    noisy = (1 - level) * batch.latents + level * batch.noise
    velocity = field(noisy, batch.sigma, batch.cond)
    error = (velocity - (batch.noise - batch.latents)).square().mean(1)
    gap = (velocity - old(noisy, batch.sigma, batch.cond)).square().mean(1)
    output = objective.loss(batch, policies(field, old=old))
    torch.testing.assert_close(output.loss, ((batch.weights - 1) * error + gap).mean())


def test_samples_of_equal_reward_leave_an_anchored_policy_as_it_is():
    field = LinearField()
    objective, (step,) = plan(torch.full((8,), 0.5), toy_rollout())
    loss = objective.loss(step[0], policies(field, old=LinearField())).loss
    assert torch.autograd.grad(loss, field.weight)[0].abs().max() == 0


def test_noise_is_fresh_for_each_update_and_keyed_by_prompt():
    rewards = torch.linspace(0, 1, 8)
    _, (first, second) = plan(rewards, toy_rollout(), num_updates=2)
    assert not torch.allclose(first[0].noise, second[0].noise)
    _, (alone,) = plan(rewards[4:], toy_rollout(num_prompts=1, first_id=1))
    both = torch.cat([batch.noise for batch in first])
    torch.testing.assert_close(torch.cat([batch.noise for batch in alone]), both[4:])


def test_the_penalty_has_a_gradient_of_its_own():
    field, reference = LinearField(), LinearField(seed=1)
    objective, (step,) = plan(torch.linspace(0, 1, 8), toy_rollout(), kl_coef=0.5)
    with_penalty = objective.loss(step[0], policies(field, reference=reference))
    without = RWR(RWRConfig()).loss(step[0], policies(field, reference=reference))
    penalty = with_penalty.loss - without.loss
    assert float(penalty.detach()) == pytest.approx(0.5 * with_penalty.metrics["kl"], rel=1e-4)
    assert torch.autograd.grad(penalty, field.weight)[0].norm() > 0


@pytest.mark.parametrize("setting", [{"temperature": 0.0}, {"kl_coef": -1.0}, {"num_updates": 0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match="objective"):
        RWRConfig(**setting)
