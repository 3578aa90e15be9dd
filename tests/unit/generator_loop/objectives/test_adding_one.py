"""A new objective needs its own file and one line in `OBJECTIVES`: here the line is patched in, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
import torch

from generator_loop.flow.path import mean_square
from generator_loop.objectives import OBJECTIVES
from generator_loop.objectives.base import LossObjective, ObjectiveConfig
from generator_loop.objectives.rwr import WeightedBatch
from generator_loop.optim.step import Updater
from generator_loop.records import Conditioning, Draw, LossOutput
from generator_loop.rewards.advantages import group_advantages
from generator_loop.run.build import read_config
from tests.tiny_models import RECIPE
from tests.toy_flow import LinearField, policies, toy_rollout, toy_scores


@dataclass(frozen=True, kw_only=True)
class StayConfig(ObjectiveConfig):
    name: Literal["stay"] = "stay"
    strength: float = 1.0
    num_updates: int = 1


@dataclass(frozen=True, kw_only=True)
class DreamConfig(StayConfig):
    differentiates = True
    name: Literal["dream"] = "dream"


class Stay(LossObjective[WeightedBatch]):
    """Pull the velocity at each clean sample to zero."""

    config_class = StayConfig
    metrics = ("loss",)

    def plan(self, rollout, scored, advantages, *, draw, micro_batch_size):
        latents = rollout.latents
        ones = torch.ones(len(latents))
        yield iter([WeightedBatch(latents, latents, 0 * ones, ones, Conditioning(rollout.cond.tensors))])

    def loss(self, batch, policies):
        velocity = policies.policy(batch.latents, batch.sigma, batch.cond)
        return LossOutput(self.config.strength * mean_square(velocity).mean(), {})


class Dream(Stay):
    config_class = DreamConfig


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "stay", Stay)
    monkeypatch.setitem(OBJECTIVES, "dream", Dream)


def read(name: str, *overrides: str):
    settings = {key: value for key, value in RECIPE.items() if not key.startswith("objective.")}
    paths = {"generator.path": "toy", "judge.path": "toy", "run.output": "out", "objective.name": name}
    return read_config(None, [f"{key}={value}" for key, value in {**settings, **paths}.items()] + list(overrides))


def test_its_config_loads_and_it_takes_a_step() -> None:
    config = read("stay", "objective.strength=0.5", "reward.transform=negate").objective
    objective = OBJECTIVES[config.name](config)
    policy, rollout, rewards = LinearField(), toy_rollout(), torch.linspace(0, 1, 8)
    before = policy.weight.detach().clone()
    advantages = group_advantages(rewards, group_size=4)
    plan = objective.plan(rollout, toy_scores(rewards), advantages, draw=Draw(0, 0), micro_batch_size=8)
    updater = Updater(dict(policy.named_parameters()), lr=0.01)
    metrics = updater.step(objective, next(iter(plan)), policies(policy))
    velocity = rollout.latents @ before + rollout.cond.tensors["text"]
    assert metrics["loss"] == pytest.approx(0.5 * velocity.square().mean().item(), rel=1e-5)
    assert not torch.equal(policy.weight, before)


@pytest.mark.parametrize("override", ["reward.transform=negate", "reward.terms.mine.callable=module:function"])
def test_one_that_differentiates_the_reward_is_refused_with_rewards_that_have_no_gradient(override: str) -> None:
    assert read("dream").objective.differentiates
    with pytest.raises(ValueError, match="objective.name=dream differentiates the judges alone"):
        read("dream", override)


def test_its_unknown_settings_and_misspelt_name_are_refused() -> None:
    with pytest.raises(ValueError, match="objective.strenght"):
        read("stay", "objective.strenght=1")
    with pytest.raises(ValueError, match="objective.name is 'drem'; did you mean 'dream'"):
        read("drem")
