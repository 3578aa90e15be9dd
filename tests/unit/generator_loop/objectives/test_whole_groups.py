"""Objectives over whole groups: no result depends on the size of micro-batches or on which prompts stand together."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from generator_loop.objectives import OBJECTIVES
from generator_loop.objectives.whole_groups import GroupObjective, group_mean
from generator_loop.records import Draw
from generator_loop.rewards.advantages import group_advantages
from tests.toy_flow import LinearField, policies, toy_rollout, toy_scores

NAMES = [name for name, objective in OBJECTIVES.items() if issubclass(objective, GroupObjective)]
REWARDS = torch.tensor([0.1, 0.9, float("nan"), 0.4, 0.0, 0.2, 0.6, 1.0, 0.3, 0.3, 0.7, 0.2])


def batches(name: str, micro_batch_size: int):
    rollout = toy_rollout(num_prompts=3)
    objective = OBJECTIVES[name](OBJECTIVES[name].config_class())
    steps = objective.plan(
        rollout,
        toy_scores(REWARDS),
        group_advantages(REWARDS, group_size=4),
        draw=Draw(0, 0),
        micro_batch_size=micro_batch_size,
    )
    return objective, list(next(iter(steps)))


def trained(name: str, micro_batch_size: int) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the gradient of one optimiser step and its metrics, summed over batches."""
    policy, old, reference = (LinearField(seed=seed) for seed in (1, 2, 3))
    objective, planned = batches(name, micro_batch_size)
    sums = dict.fromkeys(objective.metrics, 0.0)
    for batch in planned:
        found = objective.backward(batch, policies(policy, old, reference), scale=float(len(batch)))
        assert found.keys() == sums.keys()
        sums = {key: sums[key] + value * len(batch) for key, value in found.items()}
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()]), sums


def test_there_are_objectives_over_whole_groups() -> None:
    assert {"crd", "dgpo"} <= set(NAMES)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_and_metrics_do_not_depend_on_the_micro_batch(name: str, size: int) -> None:
    whole, whole_metrics = trained(name, 100)
    cut, cut_metrics = trained(name, size)
    assert whole.abs().max() > 1e-3
    assert_close(cut, whole, atol=1e-5, rtol=1e-4)
    assert cut_metrics == pytest.approx(whole_metrics, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_passes_with_gradient_hold_no_more_than_a_micro_batch_and_are_as_many_for_every_group(name: str) -> None:
    policy, sizes = LinearField(seed=1), list[int]()

    def watched(*given):
        if torch.is_grad_enabled():
            sizes.append(len(given[0]))
        return policy(*given)

    objective, planned = batches(name, 3)
    who = policies(LinearField(seed=2))
    for batch in planned:
        objective.backward(batch, type(who)(**{**vars(who), "policy": watched}), scale=1.0)
    # groups of three, four and four samples; the first, which lacks one, is passed through once more without effect
    assert sizes == [3, 3, 3, 1, 3, 1]


@pytest.mark.parametrize(("size", "lengths"), [(1, [3, 4, 4]), (4, [3, 4, 4]), (7, [7, 4]), (11, [11])])
@pytest.mark.parametrize("name", NAMES)
def test_batches_hold_as_many_whole_groups_as_fit_and_at_least_one(name: str, size: int, lengths: list[int]) -> None:
    _, planned = batches(name, size)
    assert [len(batch) for batch in planned] == lengths
    assert [batch.group.unique().tolist() for batch in planned] == (
        [[0], [1], [2]] if size < 7 else [[0, 1], [2]] if size < 11 else [[0, 1, 2]]
    )


@pytest.mark.parametrize("name", NAMES)
def test_noise_and_sigma_are_fresh_for_each_update(name: str) -> None:
    objective = OBJECTIVES[name](OBJECTIVES[name].config_class(num_updates=2))
    rewards = torch.linspace(0, 1, 4)
    steps = objective.plan(
        toy_rollout(num_prompts=1),
        toy_scores(rewards),
        group_advantages(rewards, group_size=4),
        draw=Draw(0, 0),
        micro_batch_size=4,
    )
    first, second = (list(step)[0] for step in steps)
    assert first.sigma[0] != second.sigma[0] and not torch.isclose(first.noise, second.noise).any()


def test_means_are_taken_within_each_group() -> None:
    found = group_mean(torch.tensor([1.0, 5.0, 3.0, 7.0]), torch.tensor([4, 9, 4, 4]))
    assert_close(found, torch.tensor([11 / 3, 5.0, 11 / 3, 11 / 3]))
