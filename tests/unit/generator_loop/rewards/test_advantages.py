"""Group-relative advantages, against values worked out by hand."""

import pytest
import torch
from torch.testing import assert_close

from generator_loop.rewards.advantages import group_advantages, part_advantages

NAN = float("nan")


def test_advantages_are_centred_rewards_over_the_deviation_of_all_groups():
    advantages = group_advantages(torch.tensor([1.0, 3.0, 10.0, 14.0]), group_size=2)
    # centred: -1, 1, -2, 2; their mean square is 10 / 4
    assert_close(advantages.values, torch.tensor([-1.0, 1.0, -2.0, 2.0]) / 2.5**0.5)
    assert advantages.usable.all() and advantages.num_invalid == 0 and advantages.num_groups == 2


def test_each_group_may_have_its_own_deviation():
    advantages = group_advantages(torch.tensor([1.0, 3.0, 10.0, 14.0]), group_size=2, std="group")
    assert_close(advantages.values, torch.tensor([-1.0, 1.0, -1.0, 1.0]))


def test_a_constant_added_to_one_group_changes_nothing():
    rewards = torch.tensor([0.2, 0.4, 0.9, 0.1])
    shifted = rewards + torch.tensor([5.0, 5.0, 0.0, 0.0])
    before, after = group_advantages(rewards, group_size=2), group_advantages(shifted, group_size=2)
    assert_close(before.values, after.values, atol=1e-5, rtol=0)


def test_group_with_equal_rewards_gives_zero_advantage_and_is_counted():
    advantages = group_advantages(torch.tensor([0.7, 0.7, 0.7, 0.1, 0.2, 0.3]), group_size=3)
    assert torch.equal(advantages.values[:3], torch.zeros(3))
    assert advantages.num_flat_groups == 1


def test_equal_rewards_everywhere_give_zeros_and_no_division_by_zero():
    advantages = group_advantages(torch.full((4,), 0.3), group_size=2)
    assert torch.equal(advantages.values, torch.zeros(4)) and advantages.num_flat_groups == 2


def test_missing_rewards_take_no_part_in_mean_or_deviation():
    advantages = group_advantages(torch.tensor([1.0, NAN, 3.0, 5.0, 5.0, NAN]), group_size=3)
    # centred: -1, 1, 0, 0 over four usable rewards
    assert_close(advantages.values, torch.tensor([-1.0, 0.0, 1.0, 0.0, 0.0, 0.0]) / 0.5**0.5)
    assert advantages.usable.tolist() == [True, False, True, True, True, False]
    assert advantages.num_invalid == 2 and advantages.num_flat_groups == 1


def test_a_group_without_any_reward_is_flat_and_unusable():
    advantages = group_advantages(torch.tensor([NAN, NAN, 0.0, 1.0]), group_size=2)
    assert advantages.num_flat_groups == 1 and advantages.usable.tolist() == [False, False, True, True]
    assert advantages.values.isfinite().all()


def test_two_processes_divide_by_the_same_deviation_as_one():
    rewards = torch.tensor([1.0, 3.0, 10.0, 14.0, 0.0, 0.5, 2.0, NAN])
    whole = group_advantages(rewards, group_size=2).values
    parts = []
    group_advantages(rewards[:4], group_size=2, all_sum=lambda values: parts.append(values) or values)
    group_advantages(rewards[4:], group_size=2, all_sum=lambda values: parts.append(values) or values)
    halves = [
        group_advantages(half, group_size=2, all_sum=lambda _values: parts[0] + parts[1]).values
        for half in (rewards[:4], rewards[4:])
    ]
    assert_close(torch.cat(halves), whole)


def test_rewards_that_do_not_fill_groups_are_refused():
    with pytest.raises(ValueError, match=r"multiple of group_size 2, got \[3\]"):
        group_advantages(torch.zeros(3), group_size=2)


def test_each_reward_counts_by_its_own_deviation():
    small, large = torch.tensor([0.1, 0.2, 0.1, 0.2]), torch.tensor([50.0, -50.0, -50.0, 50.0])
    advantages = part_advantages([(1.0, small), (1.0, large)], group_size=2)
    # normalised apart: (-1, 1, -1, 1) and (1, -1, -1, 1); their sum 0, 0, -2, 2 has the mean square 2
    assert_close(advantages.values, torch.tensor([0.0, 0.0, -2.0, 2.0]) / 2**0.5)
    together = group_advantages(small + large, group_size=2)
    assert_close(together.values, torch.tensor([1.0, -1.0, -1.0, 1.0]), atol=0.01, rtol=0)
    weighted = part_advantages([(3.0, small), (1.0, large)], group_size=2)
    assert_close(weighted.values, torch.tensor([-2.0, 2.0, -4.0, 4.0]) / 10**0.5)


def test_one_reward_by_itself_is_the_plain_case():
    rewards = torch.tensor([0.2, 0.4, NAN, 0.1, 0.5, 0.9])
    plain, parts = group_advantages(rewards, group_size=3), part_advantages([(2.0, rewards)], group_size=3)
    assert_close(parts.values, plain.values)
    assert torch.equal(parts.usable, plain.usable)


def test_one_reward_of_weight_1_is_the_plain_case_to_the_last_bit():
    rewards = torch.rand(600, generator=torch.Generator().manual_seed(0))
    for std in ("global", "group"):
        plain = group_advantages(rewards, group_size=6, std=std)
        assert torch.equal(part_advantages([(1.0, rewards)], group_size=6, std=std).values, plain.values)


def test_a_sample_that_lacks_one_reward_is_not_usable_and_leaves_the_means():
    advantages = part_advantages(
        [(1.0, torch.tensor([1.0, 2.0, 9.0])), (1.0, torch.tensor([1.0, 2.0, NAN]))], group_size=3
    )
    assert advantages.usable.tolist() == [True, True, False] and advantages.num_invalid == 1
    assert_close(advantages.values, torch.tensor([-1.0, 1.0, 0.0]))
