"""ReFL: the gradient through one jump to the clean clip."""

import dataclasses

import pytest
import torch

from generator_loop.objectives.refl import LateBatch, ReFL, ReFLConfig
from generator_loop.records import Conditioning, Draw, Prompt
from generator_loop.rewards.advantages import group_advantages
from tests.toy_flow import LinearField, policies, toy_rollout, toy_scores

SIGMA = torch.tensor([0.5, 0.25])


def batch():
    stream = torch.Generator().manual_seed(1)
    states, text = torch.randn(2, 3, generator=stream), torch.randn(2, 3, generator=stream)
    return LateBatch((Prompt(0, "a"), Prompt(1, "b")), states, SIGMA, Conditioning({"text": text}))


def test_the_gradient_is_that_of_the_reward_of_the_predicted_clean_sample():
    """For r = sum(x0), x0 = x - sigma (x W + ...): dL/dW = mean over samples of sigma x 1'."""
    field, one = LinearField(), batch()
    output = ReFL(ReFLConfig()).loss(one, policies(field))
    (found,) = torch.autograd.grad(output.loss, field.weight)
    expected = (SIGMA[:, None] * one.states).mean(0)[:, None].expand(3, 3)
    torch.testing.assert_close(found, expected)
    clean = one.states - SIGMA[:, None] * field(one.states, SIGMA, one.cond)
    assert output.metrics["reward"] == pytest.approx(float(clean.sum(1).mean()), rel=1e-5)


def test_rewards_above_the_target_teach_nothing():
    field, one = LinearField(), batch()
    rewards = lambda frames, _prompts: frames.flatten(1).sum(1) * 0 + torch.tensor([0.2, 0.9])  # noqa: E731
    output = ReFL(ReFLConfig(target=0.5)).loss(one, policies(field, reward=rewards))
    assert float(output.loss) == pytest.approx((0.5 - 0.2) / 2)


def test_a_sample_without_reward_adds_nothing():
    field, one = LinearField(), batch()

    def second_missing(frames, _prompts):
        return torch.stack([frames[0].sum(), torch.tensor(torch.nan)])

    output = ReFL(ReFLConfig()).loss(one, policies(field, reward=second_missing))
    (found,) = torch.autograd.grad(output.loss, field.bias)
    assert output.metrics["valid"] == 0.5 and bool(found.isfinite().all())


def test_the_reference_pulls():
    field, one = LinearField(), batch()
    output = ReFL(ReFLConfig(kl_coef=0.5)).loss(one, policies(field, reference=LinearField(seed=1)))
    plain = ReFL(ReFLConfig()).loss(one, policies(field))
    assert output.metrics["kl"] > 0
    assert float(output.loss) == pytest.approx(float(plain.loss) + 0.5 * output.metrics["kl"], rel=1e-4)


def test_each_sample_is_taken_up_at_a_kept_step_of_its_own_whatever_the_micro_batches():
    rollout = toy_rollout(num_kept=4)
    rewards = torch.tensor([0.1, 0.2, 0.3, float("nan"), 0.5, 0.6, 0.7, 0.8])
    advantages, objective = group_advantages(rewards, group_size=4), ReFL(ReFLConfig())
    drawn = []
    for size in (8, 3):
        (batches,) = objective.plan(rollout, toy_scores(rewards), advantages, draw=Draw(0, 0), micro_batch_size=size)
        parts = list(batches)
        drawn.append((torch.cat([part.states for part in parts]), torch.cat([part.sigma for part in parts])))
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)
    states, sigma = drawn[0]
    assert len(sigma) == 7 and len(set(sigma.tolist())) > 1
    rows = [0, 1, 2, 4, 5, 6, 7]
    for row, state, level in zip(rows, states, sigma, strict=True):
        step = rollout.tail.sigmas.tolist().index(float(level))
        assert torch.equal(state, rollout.tail.states[step, row])
    updates = objective.__class__(dataclasses.replace(objective.config, num_updates=2)).plan(
        rollout, toy_scores(rewards), advantages, draw=Draw(0, 0), micro_batch_size=8
    )
    first, second = (next(batches).sigma for batches in updates)
    assert not torch.equal(first, second)


def test_each_update_judges_a_run_of_its_own():
    rollout = dataclasses.replace(toy_rollout(num_kept=4), latents=torch.zeros(8, 1, 6, 1, 1))
    rewards = torch.linspace(0, 1, 8)
    objective = ReFL(ReFLConfig(decode_latent_frames=2, num_updates=20))
    advantages = group_advantages(rewards, group_size=4)
    plan = objective.plan(rollout, toy_scores(rewards), advantages, draw=Draw(0, 0), micro_batch_size=3)
    excerpts = [[batch.excerpt for batch in batches] for batches in plan]
    assert all(len(step) == 3 and len(set(step)) == 1 for step in excerpts)
    assert {(step[0].start, len(step[0])) for step in excerpts} == {(start, 2) for start in range(5)}


def test_the_reward_sees_the_frames_of_the_excerpt():
    field, seen = LinearField(), []

    def first_two(latents, excerpt=None):
        seen.append(excerpt)
        return latents[:, excerpt.start : excerpt.stop]

    one = dataclasses.replace(batch(), excerpt=range(0, 2))
    output = ReFL(ReFLConfig()).loss(one, policies(field, decode=first_two))
    clean = one.states - SIGMA[:, None] * field(one.states, SIGMA, one.cond)
    assert seen == [range(0, 2)]
    assert float(output.loss) == pytest.approx(-float(clean[:, :2].sum(1).mean()), rel=1e-5)


@pytest.mark.parametrize(
    "setting", [{"tail_span": 0.0}, {"kl_coef": -1.0}, {"num_updates": 0}, {"decode_latent_frames": 0}]
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match="objective"):
        ReFLConfig(**setting)
