"""Samples whose reward is NaN or infinite teach no objective anything."""

from __future__ import annotations

import math

import pytest
import torch

from generator_loop.flow.sde import Kernel
from generator_loop.objectives import OBJECTIVES
from generator_loop.records import Draw
from generator_loop.rewards.advantages import group_advantages, part_advantages
from tests.toy_flow import LinearField, toy_rollout, toy_scores, with_walk

REWARDS = (1.0, 2.0, 4.0, 3.0)
"""Rewards of a group; each test spoils one of them."""


def rollout():
    """Return one group of four, with the states that any objective needs."""
    return with_walk(toy_rollout(num_prompts=1, num_kept=4), LinearField(), Kernel("flow", 0.7))


def taught(name: str, rewards: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Return the tensors of all micro-batches that an objective makes of these rewards."""
    objective = OBJECTIVES[name](OBJECTIVES[name].config_class())
    advantages = group_advantages(rewards, group_size=4)
    steps = objective.plan(rollout(), toy_scores(rewards), advantages, draw=Draw(0, 0), micro_batch_size=8)
    batches = [batch for step in steps for batch in step]
    return [{key: value for key, value in vars(batch).items() if torch.is_tensor(value)} for batch in batches]


@pytest.mark.parametrize("spoilt", [math.inf, -math.inf])
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_infinite_reward_counts_as_a_missing_one(name: str, place: int, spoilt: float) -> None:
    rewards = torch.tensor(REWARDS)
    rewards[place] = spoilt
    missing = torch.tensor(REWARDS)
    missing[place] = math.nan
    ours, expected = taught(name, rewards), taught(name, missing)
    assert len(ours) == len(expected) > 0
    for batch, wanted in zip(ours, expected, strict=True):
        assert batch.keys() == wanted.keys()
        assert all(torch.equal(value, wanted[key]) and bool(value.isfinite().all()) for key, value in batch.items())


@pytest.mark.parametrize("rewards", [[math.nan] * 4, [math.inf] * 4, [math.inf, -math.inf, math.nan, math.inf]])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_group_without_any_finite_reward_teaches_nothing(name: str, rewards: list[float]) -> None:
    assert taught(name, torch.tensor(rewards)) == []


def test_an_infinite_part_takes_its_sample_out_of_all_parts() -> None:
    plain, spoilt = torch.tensor(REWARDS), torch.tensor([math.inf, 1.0, 0.0, 2.0])
    advantages = part_advantages([(1.0, plain), (0.5, spoilt)], group_size=4)
    assert advantages.usable.tolist() == [False, True, True, True]
    assert float(advantages.values[0]) == 0 and bool(advantages.values.isfinite().all())
