"""GRPO's pure part against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from reward_model.training.methods.policy_loss import grpo_advantages, policy_loss


def test_advantages_are_standard_scores_inside_each_group():
    # group 7: 1, 2, 3 has mean 2 and unbiased deviation 1; group 4: 0, 4 has mean 2 and deviation sqrt(8)
    found = grpo_advantages(torch.tensor([1.0, 0.0, 2.0, 4.0, 3.0]), torch.tensor([7, 4, 7, 4, 7]))
    other = 2 / (math.sqrt(8) + 1e-4)
    one = 1 / (1 + 1e-4)
    assert_close(found.values, torch.tensor([-one, -other, 0.0, other, one]))
    assert (found.num_groups, found.num_flat) == (2, 0)


def test_without_the_deviation_advantages_keep_the_rewards_unit():
    found = grpo_advantages(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]), normalize_std=False)
    assert_close(found.values, torch.tensor([-1.0, 1.0]))


def test_a_group_of_equal_rewards_teaches_nothing_and_is_counted():
    found = grpo_advantages(torch.tensor([0.3, 0.3, 1.0, 2.0]), torch.tensor([0, 0, 1, 1]))
    assert found.values[:2].tolist() == [0.0, 0.0] and found.values[3] > 0
    assert (found.num_groups, found.num_flat) == (2, 1)


def test_answers_that_are_not_usable_leave_the_others_statistics_alone():
    found = grpo_advantages(
        torch.tensor([1.0, 3.0, -9.0]), torch.tensor([0, 0, 0]), usable=torch.tensor([True, True, False])
    )
    value = 1 / (math.sqrt(2) + 1e-4)
    assert_close(found.values, torch.tensor([-value, value, 0.0]))


def test_a_group_of_one_answer_has_no_advantage():
    assert grpo_advantages(torch.tensor([5.0]), torch.tensor([3])).values.tolist() == [0.0]


def loss_of(log_probs, old, advantages, owner, **changes):
    settings = {"clip_range": 0.2, "kl_coef": 0.0, "num_answers": len(advantages)} | changes
    return policy_loss(
        log_probs,
        old,
        changes.pop("reference", None),
        advantages,
        owner,
        **{k: v for k, v in settings.items() if k != "reference"},
    )


def test_before_the_first_update_the_gradient_is_the_mean_advantage_of_each_token():
    # two answers of two tokens and one: weights 1/2 / 2 and 1 / 2 a token
    log_probs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    loss, metrics = loss_of(log_probs, log_probs.detach(), torch.tensor([1.0, -2.0]), torch.tensor([0, 0, 1]))
    assert_close(loss, torch.tensor(-(1.0 - 2.0) / 2))
    loss.backward()
    assert_close(log_probs.grad, torch.tensor([-0.25, -0.25, 1.0]))
    assert metrics["clip_rate"] == 0 and metrics["ratio_error"] == 0


@pytest.mark.parametrize(
    ("ratio", "gain", "flows"), [(1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False)]
)
def test_the_gradient_stops_where_the_ratio_has_gone_far_in_the_gains_direction(ratio, gain, flows):
    log_probs = torch.tensor([math.log(ratio)], requires_grad=True)
    loss, metrics = loss_of(log_probs, torch.zeros(1), torch.tensor([gain]), torch.tensor([0]))
    loss.backward()
    assert (log_probs.grad.abs().item() > 0) == flows and metrics["clip_rate"] == 1
    expected = min(ratio * gain, (1.2 if ratio > 1 else 0.8) * gain)
    assert loss.item() == pytest.approx(-expected)


def test_the_penalty_is_the_k3_estimate_and_vanishes_at_the_reference():
    log_probs, reference = torch.tensor([-1.0, -3.0]), torch.tensor([-1.5, -2.0])
    loss, metrics = policy_loss(
        log_probs,
        log_probs,
        reference,
        torch.zeros(1),
        torch.tensor([0, 0]),
        clip_range=0.2,
        kl_coef=0.5,
        num_answers=1,
    )
    kl = ((math.exp(-0.5) + 0.5 - 1) + (math.exp(1.0) - 1.0 - 1)) / 2
    assert metrics["kl"] == pytest.approx(kl) and loss.item() == pytest.approx(0.5 * kl)
    same, metrics = policy_loss(
        log_probs,
        log_probs,
        log_probs,
        torch.zeros(1),
        torch.tensor([0, 0]),
        clip_range=0.2,
        kl_coef=0.5,
        num_answers=1,
    )
    assert same.item() == 0 and metrics["kl"] == 0


def test_parts_of_a_step_add_up_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    log_probs, old, reference = (torch.randn(7, generator=generator) * 0.1 for _ in range(3))
    advantages, owner = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0, 0, 1, 1, 1, 2, 2])
    settings = {"clip_range": 0.1, "kl_coef": 0.04, "num_answers": 3}
    whole, metrics = policy_loss(log_probs, old, reference, advantages, owner, **settings)
    a, first = policy_loss(log_probs[:5], old[:5], reference[:5], advantages[:2], owner[:5], **settings)
    b, second = policy_loss(log_probs[5:], old[5:], reference[5:], advantages[2:], owner[5:] - 2, **settings)
    assert_close(a + b, whole)
    assert first["kl"] + second["kl"] == pytest.approx(metrics["kl"])


def test_an_asymmetric_range_lets_the_ratio_rise_further_than_it_falls():
    for ratio, gain, flows in ((1.25, 1.0, True), (1.35, 1.0, False), (0.75, -1.0, False), (0.85, -1.0, True)):
        log_probs = torch.tensor([math.log(ratio)], requires_grad=True)
        loss, _ = loss_of(
            log_probs, torch.zeros(1), torch.tensor([gain]), torch.tensor([0]), clip_range=0.2, clip_range_high=0.28
        )
        loss.backward()
        assert (log_probs.grad.abs().item() > 0) == flows, ratio


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_micro_batches_add_up_to_the_step_whatever_the_lengths(loss_type):
    generator = torch.Generator().manual_seed(0)
    log_probs, old = (torch.randn(7, generator=generator) * 0.1 for _ in range(2))
    advantages, owner = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0, 0, 1, 1, 1, 1, 2])
    settings = {"num_answers": 3, "loss_type": loss_type, "num_tokens": 7, "max_answer_tokens": 5}
    whole, _ = loss_of(log_probs, old, advantages, owner, **settings)
    a, _ = loss_of(log_probs[:2], old[:2], advantages[:1], owner[:2], **settings)
    b, _ = loss_of(log_probs[2:], old[2:], advantages[1:], owner[2:] - 1, **settings)
    assert_close(a + b, whole)
