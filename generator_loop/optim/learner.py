"""The learner: one iteration's optimiser steps on the policy, after which the sampling policy follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from generator_loop.adapters.base import OLD, POLICY, VideoGenerator
from generator_loop.config import UpdateConfig
from generator_loop.objectives.base import Objective, PixelReward, Regulariser
from generator_loop.optim.ema import follow
from generator_loop.optim.moments import Moments, WholeMoments
from generator_loop.optim.step import Updater, policies_of
from generator_loop.records import Draw, Rollout, Scored
from generator_loop.rewards.advantages import Advantages


class Learner:
    """Turns scored samples into optimiser steps by the run's objective."""

    def __init__(
        self,
        generator: VideoGenerator,
        objective: Objective[Any],
        *,
        reward: PixelReward,
        config: UpdateConfig,
        moments: type[Moments] = WholeMoments,
        regularisers: Mapping[str, Regulariser] | None = None,
    ) -> None:
        """Start with empty moments.

        Args:
            generator: its policy is trained; `old` and `reference` are set.
            objective: plans the steps.
            reward: differentiable reward, for objectives that need it.
            config: rates, micro-batch size and how fast the sampling policy follows.
            moments: where AdamW keeps its moments.
            regularisers: name -> loss beside the objective.
        """
        self.objective, self._generator, self._config = objective, generator, config
        self.regularisers = dict(regularisers or {})
        self._policies = policies_of(generator, reward)
        self.updater = Updater(
            generator.trainable_parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            moments=moments,
        )

    def learn(self, samples: Rollout, scored: Scored, advantages: Advantages, draw: Draw) -> dict[str, float]:
        """Take the objective's optimiser steps on one iteration's samples, then move the sampling policy.

        Args:
            samples: this process's groups.
            scored: their rewards.
            advantages: their group-relative advantages.
            draw: random streams of the iteration.

        Returns:
            The steps' metrics, each averaged over the steps that report it.
        """
        size = self._config.micro_batch_size
        steps = self.objective.plan(samples, scored, advantages, draw=draw, micro_batch_size=size)
        beside = list(self.regularisers.values())
        for regulariser in beside:
            regulariser.prepare(samples, scored)
        metrics = [
            self.updater.step(
                self.objective, batches, self._policies, regularisers=beside, draw=draw.fork(f"beside {number}")
            )
            for number, batches in enumerate(steps)
        ]
        follow(self._generator.weights(OLD), self._generator.weights(POLICY), decay=self._config.old_decay)
        means = mean_metrics(metrics)
        for regulariser in beside:
            if all(name in means for name in regulariser.metrics):  # no step without samples
                regulariser.adapt(means)
        return means


def mean_metrics(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over the steps that report it."""
    names = sorted({name for step in steps for name in step})
    return {name: sum(s[name] for s in steps if name in s) / sum(name in s for s in steps) for name in names}
