"""The learner: the sampling policy follows the trained one at the rate of the config, and metrics are averaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from generator_loop.adapters.base import OLD, POLICY, REFERENCE
from generator_loop.config import UpdateConfig
from generator_loop.objectives.base import backward_of
from generator_loop.optim.learner import Learner, mean_metrics
from generator_loop.records import Draw, LossOutput
from generator_loop.rewards.advantages import group_advantages
from tests.tiny_wan import build_generator
from tests.toy_flow import toy_rollout, toy_scores


class PullToOne:
    """Pulls every trained weight towards 1, in a given number of steps."""

    metrics = ("loss",)

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], num_steps: int = 1) -> None:
        self.parameters, self.num_steps, self.asked = parameters, num_steps, dict[str, Any]()

    def plan(self, samples: Any, scored: Any, advantages: Any, **settings: Any) -> Iterator[list[list[int]]]:
        """Return steps of one batch of two samples."""
        self.asked = {"samples": samples, "scored": scored, "advantages": advantages, **settings}
        return iter([[[0, 1]]] * self.num_steps)

    def backward(self, batch: list[int], _policies: Any, *, scale: float) -> dict[str, float]:
        """Return the distance."""
        loss = torch.stack([(parameter - 1).square().mean() for parameter in self.parameters.values()]).mean()
        return dict(backward_of(LossOutput(loss, {}), scale=scale))


def learned(old_decay: float, *, num_steps: int = 1) -> tuple[Any, list[dict[str, dict[str, torch.Tensor]]], PullToOne]:
    """Return a generator, its named weights before and after each of two iterations, and the objective."""
    generator = build_generator()
    objective = PullToOne(generator.trainable_parameters(), num_steps)
    learner = Learner(
        generator,
        objective,  # type: ignore[arg-type]
        reward=lambda frames, _prompts: frames.flatten(1).mean(1),
        config=UpdateConfig(learning_rate=0.05, old_decay=old_decay, micro_batch_size=3),
    )

    def weights() -> dict[str, dict[str, torch.Tensor]]:
        return {
            name: {key: value.clone() for key, value in generator.weights(name).items()}
            for name in (POLICY, OLD, REFERENCE)
        }

    seen, samples, rewards = [weights()], toy_rollout(), torch.linspace(0, 1, 8)
    for step in range(2):
        learner.learn(samples, toy_scores(rewards), group_advantages(rewards, group_size=4), Draw(0, step))
        seen.append(weights())
    return generator, seen, objective


@pytest.mark.parametrize("old_decay", [0.0, 0.5, 0.75])
def test_the_sampling_policy_follows_the_trained_one_at_the_configs_rate(old_decay: float) -> None:
    _, seen, _ = learned(old_decay)
    for before, after in zip(seen, seen[1:], strict=False):
        for name, policy in after[POLICY].items():
            assert not torch.equal(policy, before[POLICY][name])
            expected = old_decay * before[OLD][name] + (1 - old_decay) * policy
            torch.testing.assert_close(after[OLD][name], expected, atol=1e-6, rtol=0)
            assert torch.equal(after[REFERENCE][name], seen[0][REFERENCE][name])


def test_without_decay_the_sampling_policy_is_the_newest_one_exactly_and_no_alias() -> None:
    generator, seen, _ = learned(0.0)
    for name, value in seen[-1][OLD].items():
        assert torch.equal(value, seen[-1][POLICY][name])
    name = next(iter(seen[0][POLICY]))
    kept = generator.weights(OLD)[name].clone()
    with torch.no_grad():
        generator.trainable_parameters()[name].add_(1)
    assert torch.equal(generator.weights(OLD)[name], kept)


def test_every_step_of_the_plan_is_taken_before_the_sampling_policy_moves() -> None:
    _, one, _ = learned(0.0)
    _, three, objective = learned(0.0, num_steps=3)
    name = next(iter(one[0][POLICY]))

    def moved(seen: list[dict[str, dict[str, torch.Tensor]]]) -> float:
        return float((seen[1][OLD][name] - seen[0][OLD][name]).abs().mean())

    assert moved(three) > 2 * moved(one)  # AdamW's steps are of one size
    assert objective.asked["micro_batch_size"] == 3 and objective.asked["draw"] == Draw(0, 1)


def test_a_metric_is_averaged_over_the_steps_that_report_it() -> None:
    steps = [{"loss": 1.0, "kl": 4.0}, {"loss": 3.0}, {"loss": 5.0, "kl": 0.0}]
    assert mean_metrics(steps) == {"kl": 2.0, "loss": 3.0}
    assert mean_metrics([]) == {}
