"""Diffusion-DPO against a naive version, and the choice of pairs."""

import dataclasses
import math

import pytest
import torch
from torch.testing import assert_close

from generator_loop.objectives.diffusion_dpo import DiffusionDPO, DiffusionDPOConfig, PairBatch, choose_pairs, dominates
from generator_loop.records import Conditioning, Draw, Scored
from generator_loop.rewards.advantages import group_advantages
from tests.toy_flow import LinearField, policies, toy_rollout, toy_scores

NAN, INF = float("nan"), float("inf")


def random_pairs(num=3, dim=3):
    noise = torch.Generator().manual_seed(0)
    winners, losers, eps, text = torch.randn(4, num, dim, generator=noise)
    sigma = torch.rand(num, generator=noise)
    return PairBatch(winners=winners, losers=losers, noise=eps, sigma=sigma, cond=Conditioning({"text": text}))


def test_loss_is_log_2_where_policy_and_reference_agree():
    objective = DiffusionDPO(DiffusionDPOConfig())
    output = objective.loss(random_pairs(), policies(LinearField(), reference=LinearField()))
    assert_close(output.loss.item(), math.log(2))
    assert output.metrics["margin"] == 0 and output.metrics["implicit_accuracy"] == 0


def test_loss_equals_a_naive_version_pair_by_pair():
    batch, policy, reference = random_pairs(), LinearField(seed=1), LinearField(seed=2)
    beta, anchor, expected = 3.0, 0.7, []
    for i in range(len(batch)):
        sigma, text = batch.sigma[i : i + 1], Conditioning({"text": batch.cond.tensors["text"][i : i + 1]})
        difference = {}
        for side, x0 in (("winner", batch.winners[i]), ("loser", batch.losers[i])):
            x, target = (1 - sigma) * x0 + sigma * batch.noise[i], batch.noise[i] - x0
            errors = [(field(x[None], sigma, text)[0] - target).square().mean() for field in (policy, reference)]
            difference[side] = errors[0] - errors[1]
        inner = -beta / 2 * (difference["winner"] - difference["loser"])
        expected.append(-torch.log(torch.sigmoid(inner)) + anchor * difference["winner"])
    objective = DiffusionDPO(DiffusionDPOConfig(beta_mean=beta, anchor=anchor))
    output = objective.loss(batch, policies(policy, reference=reference))
    assert_close(output.loss, torch.stack(expected).mean(), atol=1e-5, rtol=1e-5)
    assert output.loss.requires_grad


def test_training_on_a_pair_prefers_the_winner_and_the_anchor_nears_it():
    batch, policy = random_pairs(), LinearField()
    objective = DiffusionDPO(DiffusionDPOConfig(beta_mean=20.0, anchor=1.0))
    who = policies(policy, reference=LinearField())
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
    for _ in range(50):
        optimizer.zero_grad()
        metrics = objective.backward(batch, who, scale=1.0)
        optimizer.step()
    assert metrics["implicit_accuracy"] == 1 and metrics["margin"] > 0.1
    assert metrics["winner_error"] < -0.1 and metrics["loss"] < math.log(2)


def test_pairs_are_the_best_with_the_worst_then_the_next():
    rewards = torch.tensor([0.3, 0.9, 0.1, 0.5, 0.7, 0.2])
    assert choose_pairs(rewards, group_size=6, num_pairs=2, min_gap=0.0) == [(1, 2), (4, 5)]


def test_pairs_stay_within_their_group_and_above_the_gap():
    rewards = torch.tensor([0.5, 0.52, 0.5, 0.1, 0.9, 0.4])
    assert choose_pairs(rewards, group_size=3, num_pairs=2, min_gap=0.05) == [(4, 3)]


def test_ties_make_no_pair_even_without_a_gap():
    assert choose_pairs(torch.full((4,), 0.5), group_size=4, num_pairs=2, min_gap=0.0) == []


def test_samples_without_reward_make_no_pair():
    rewards = torch.tensor([NAN, 0.2, 0.8, NAN, NAN, 0.3, NAN, NAN, 0.9, NAN, 0.1, 0.5])
    assert choose_pairs(rewards, group_size=4, num_pairs=2, min_gap=0.05) == [(2, 1), (8, 10)]


def plan(rollout, rewards, *, num_updates=2, micro_batch_size=32):
    objective = DiffusionDPO(DiffusionDPOConfig(num_updates=num_updates))
    advantages = group_advantages(rewards, group_size=rollout.group_size)
    steps = objective.plan(rollout, toy_scores(rewards), advantages, draw=Draw(0, 0), micro_batch_size=micro_batch_size)
    return [list(batches) for batches in steps]


def test_plan_hands_out_winners_losers_and_their_prompt():
    rollout, rewards = toy_rollout(num_prompts=2), torch.tensor([0.1, 0.9, 0.5, 0.4, 0.0, 0.2, 0.6, 1.0])
    steps = plan(rollout, rewards, micro_batch_size=3)
    assert [[len(batch) for batch in batches] for batches in steps] == [[3, 1], [3, 1]]
    whole = torch.cat([batch.winners for batch in steps[0]]), torch.cat([batch.losers for batch in steps[0]])
    assert torch.equal(whole[0], rollout.latents[[1, 2, 7, 6]]) and torch.equal(whole[1], rollout.latents[[0, 3, 4, 5]])
    assert torch.equal(steps[0][0].cond.tensors["text"], rollout.cond.tensors["text"][[1, 2, 7]])


def test_noise_is_keyed_by_prompt_and_fresh_in_each_update():
    rewards = torch.tensor([0.1, 0.9, 0.5, 0.4, 0.0, 0.2, 0.6, 1.0])
    both, second = plan(toy_rollout(num_prompts=2), rewards), plan(toy_rollout(num_prompts=1, first_id=1), rewards[4:])
    for one, other in zip(both, second, strict=True):
        assert torch.equal(one[0].noise[2:], other[0].noise) and torch.equal(one[0].sigma[2:], other[0].sigma)
    assert not torch.equal(both[0][0].noise, both[1][0].noise)


def test_a_rollout_without_pairs_still_gives_every_optimiser_step():
    assert plan(toy_rollout(num_prompts=2), torch.zeros(8), num_updates=3) == [[], [], []]


@pytest.mark.parametrize("setting", [{"beta_mean": 0.0}, {"anchor": -1.0}, {"num_pairs": 0}, {"min_gap": -0.1}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=f"objective.{next(iter(setting))} must be"):
        DiffusionDPOConfig(**setting)


def test_pairs_are_chosen_by_each_score_and_a_pair_of_both_counts_once():
    rollout = toy_rollout(num_prompts=1, group_size=4)
    rewards = torch.tensor([0.1, 0.9, 0.5, 0.4])
    scored = Scored(
        rewards=rewards,
        valid=torch.ones(4, dtype=torch.bool),
        scores={"wins": torch.tensor([0.2, 0.3, 0.9, NAN]), "other": rewards * 2},
    )

    def chosen(*names):
        config = DiffusionDPOConfig(num_updates=1, num_pairs=1, pair_by=names)
        advantages = group_advantages(rewards, group_size=4)
        steps = DiffusionDPO(config).plan(rollout, scored, advantages, draw=Draw(0, 0), micro_batch_size=8)
        (batch,) = next(steps)
        places = [
            [int((rollout.latents - clip).flatten(1).abs().sum(1).argmin()) for clip in clips]
            for clips in (batch.winners, batch.losers)
        ]
        return list(zip(*places, strict=True))

    assert chosen("reward") == [(1, 0)] and chosen("wins") == [(2, 0)]
    assert chosen("wins", "reward", "other") == [(2, 0), (1, 0)]


@pytest.mark.parametrize("names", [(), ("wins", "wins")])
def test_scores_that_choose_pairs_are_named_once_each(names):
    with pytest.raises(ValueError, match="objective.pair_by must name scores"):
        DiffusionDPOConfig(pair_by=names)


def test_with_dominance_a_winner_must_not_be_worse_in_any_dimension():
    nan = float("nan")
    scores = {"visual_quality": torch.tensor([0.5, 0.6, 0.5]), "text_alignment": torch.tensor([0.5, 0.4, nan])}
    assert not dominates(scores, 1, 0) and not dominates(scores, 0, 1)
    assert dominates(scores, 1, 2) and dominates(scores, 0, 2) and dominates(scores, 2, 0)
    rollout, rewards = toy_rollout(num_prompts=1), torch.tensor([0.1, 0.9, 0.5, 0.4])
    worse = Scored(rewards, rewards.isfinite(), {"visual_quality": torch.tensor([0.9, 0.1, 0.5, 0.4])})
    for dominance, count in ((True, 1), (False, 2)):
        objective = DiffusionDPO(DiffusionDPOConfig(dominance=dominance, num_updates=1))
        advantages = group_advantages(rewards, group_size=4)
        (step,) = objective.plan(rollout, worse, advantages, draw=Draw(0, 0), micro_batch_size=8)
        assert sum(len(batch) for batch in step) == count


@pytest.mark.parametrize(
    ("rewards", "pairs"),
    [
        ([INF, 1, 2, 3], [(3, 1)]),
        ([-INF, 1, 2, 3], [(3, 1)]),
        ([INF, -INF, NAN, 3], []),
        ([INF, -INF, 1, 3], [(3, 2)]),
        ([NAN, NAN, NAN, NAN], []),
        ([INF, INF, INF, INF], []),
        ([2, 2, 2, 2], []),
        ([1, 1, 2, 2], [(3, 0), (2, 1)]),
    ],
)
def test_only_finite_rewards_make_pairs(rewards, pairs):
    assert choose_pairs(torch.tensor(rewards).float(), group_size=4, num_pairs=2, min_gap=0.0) == pairs


def test_a_sample_that_is_not_valid_makes_no_pair_whatever_its_reward():
    rollout, scored = toy_rollout(num_prompts=1, group_size=4), toy_scores(torch.tensor([9.0, 1.0, 2.0, 3.0]))
    scored = dataclasses.replace(scored, valid=torch.tensor([False, True, True, True]))
    plan = DiffusionDPO(DiffusionDPOConfig(num_updates=1)).plan(
        rollout, scored, group_advantages(scored.rewards, group_size=4), draw=Draw(seed=0, step=0), micro_batch_size=8
    )
    (batch,) = next(plan)
    assert torch.equal(batch.winners, rollout.latents[3:4]) and torch.equal(batch.losers, rollout.latents[1:2])
