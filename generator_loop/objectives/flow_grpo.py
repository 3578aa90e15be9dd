"""Flow-GRPO: a policy gradient through random steps of the sampler.

Some steps of the rollout are drawn from a Gaussian around the deterministic one. The policy is made to take the steps of
better samples more often, by the clipped ratio of probabilities. Without a weight, late steps would get nearly all of the
gradient, up to hundreds of times that of the early ones, which decide layout and motion; each step's log-ratio is therefore
divided by its gradient coefficient, or brought to one scale as GRPO-Guard does.

Shape legend: B samples of a rollout, N of a micro-batch, K random steps.

Source: Flow-GRPO (arXiv 2505.05470); MixGRPO (arXiv 2507.21802) for the window; Flash-GRPO for the weights; GRPO-Guard (arXiv 2510.22319)
for the ratio without drift.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from generator_loop.flow.path import mean_square
from generator_loop.flow.sde import Kernel, KernelName, RandomSteps, step_weights
from generator_loop.objectives.base import LossObjective, ObjectiveConfig, Policies
from generator_loop.records import Conditioning, Draw, LossOutput, Rollout, Scored
from generator_loop.rewards.advantages import Advantages

Balance = Literal["gradient", "guard", "none"]


@dataclass(frozen=True, kw_only=True)
class FlowGRPOConfig(ObjectiveConfig):
    """Config of Flow-GRPO."""

    name: Literal["flow_grpo"] = "flow_grpo"
    """Chooses this objective."""

    kernel: KernelName = "flow"
    """Noise of the random steps: flow (Flow-GRPO), dance (DanceGRPO) or cps (cleaner clips at few steps)."""

    noise_level: float = 0.7
    """a: raising it explores more and samples worse clips (flow 0.7 to 0.9, dance 0.25 to 1.2, cps 0.8)."""

    window: int = 4
    """Consecutive random steps of a rollout, begun anywhere but shared by all its clips (MixGRPO: 4); 0 makes all random."""

    balance: Balance = "gradient"
    """How steps come to pull on the policy alike: gradient divides each log-ratio by its gradient coefficient; guard is
    GRPO-Guard, which takes the drift out of the ratio too (clip_range 2e-6; one forward pass more); none leaves late steps
    nearly all of the gradient."""

    clip_range: float = 1e-3
    """The ratio of probabilities counts within 1 +- this; small, as log-probabilities are means over elements."""

    advantage_clip: float = 5.0
    """Advantages beyond this count as this."""

    kl_coef: float = 0.0
    """Weight of the mean squared velocity difference to the reference; 0 skips its forward pass."""

    num_updates: int = 1
    """Optimiser steps on one rollout; above 1 the clip range matters."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("noise_level", "clip_range", "advantage_clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"objective.{name} must be > 0, got {getattr(self, name)}")
        if self.kernel == "cps" and self.noise_level > 1:
            raise ValueError(f"objective.noise_level of cps must be <= 1, got {self.noise_level}")
        if self.kernel == "cps" and self.balance == "guard":
            raise ValueError("objective.balance=guard divides by the Gaussian's deviation, which kernel cps leaves out")
        if self.window < 0 or self.kl_coef < 0 or self.num_updates < 1:
            raise ValueError(
                "objective.window and objective.kl_coef must be >= 0 and objective.num_updates >= 1, got "
                f"{self.window}, {self.kl_coef} and {self.num_updates}"
            )


@dataclass(frozen=True)
class StepBatch:
    """One random step of N samples: `states` before and `results` after [N, ...], its advantage and log-probability."""

    states: Tensor
    results: Tensor
    sigma: float
    sigma_next: float
    ceiling: float
    weight: float
    log_probs: Tensor
    advantages: Tensor
    cond: Conditioning

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.states)


class FlowGRPO(LossObjective[StepBatch]):
    """Flow-GRPO as an objective of the loop."""

    config_class = FlowGRPOConfig
    metrics = ("loss", "ratio_error", "clip_fraction", "kl")

    def __init__(self, config: FlowGRPOConfig) -> None:
        """Keep the config.

        Args:
            config: of the objective.
        """
        super().__init__(config)
        self.kernel = Kernel(config.kernel, config.noise_level)
        self.random_steps = RandomSteps(self.kernel, config.window)

    def plan(
        self, rollout: Rollout, scored: Scored, advantages: Advantages, *, draw: Draw, micro_batch_size: int
    ) -> Iterator[Iterator[StepBatch]]:
        """Yield optimiser steps, each over all random steps of all samples that differ; see `Objective.plan`."""
        for _ in range(self.num_updates):
            yield self._micro_batches(rollout, advantages, micro_batch_size)

    def _micro_batches(self, rollout: Rollout, advantages: Advantages, micro_batch_size: int) -> Iterator[StepBatch]:
        assert rollout.trajectory is not None, "the rollout must be drawn with the objective's random steps"
        trajectory, device = rollout.trajectory, rollout.latents.device
        sigmas = trajectory.sigmas.tolist()
        weights = self._weights(trajectory.sigmas)
        samples = (advantages.usable & (advantages.values != 0)).nonzero().flatten()
        clip = self.config.advantage_clip
        for place, step in enumerate(trajectory.steps):
            for start in range(0, len(samples), micro_batch_size):
                micro_batch = samples[start : start + micro_batch_size]
                index = micro_batch.to(device)
                yield StepBatch(
                    states=trajectory.states[place, index],
                    results=trajectory.results[place, index],
                    sigma=sigmas[step],
                    sigma_next=sigmas[step + 1],
                    ceiling=sigmas[1],
                    weight=weights[step],
                    log_probs=trajectory.log_probs[place, index],
                    advantages=advantages.values[micro_batch].clamp(-clip, clip).to(device),
                    cond=rollout.cond.select(index),
                )

    def _weights(self, sigmas: Tensor) -> list[float]:
        """Return the weight of every step but the last: of its log-ratio, or, with the guard, of its loss."""
        if self.config.balance == "gradient":
            return step_weights(self.kernel, sigmas)
        spans = (sigmas[:-2] - sigmas[1:-1]).tolist()
        return [1 / span if self.config.balance == "guard" else 1.0 for span in spans]

    def loss(self, batch: StepBatch, policies: Policies) -> LossOutput:
        """Compute the loss of one micro-batch.

        Args:
            batch: one random step of some samples.
            policies: the policies.

        Returns:
            Mean loss; `ratio_error` is the mean distance of the ratio from 1, `clip_fraction` how often it is clipped, `kl` the
            mean squared velocity difference to the reference, 0 where `kl_coef` is 0.
        """
        sigma = torch.full((len(batch),), batch.sigma, device=batch.states.device)
        velocity = policies.policy(batch.states, sigma, batch.cond)
        step = self.kernel.transition(batch.states, velocity, batch.sigma, batch.sigma_next, ceiling=batch.ceiling)
        if self.config.balance == "guard":
            ratio, weight = self._guarded_ratio(batch, step.mean, policies), batch.weight
        else:
            log_probs = self.kernel.log_prob(step, batch.results)
            ratio, weight = (batch.weight * (log_probs - batch.log_probs)).exp(), 1.0  # [N]
        clipped = ratio.clamp(1 - self.config.clip_range, 1 + self.config.clip_range)
        loss = -weight * torch.minimum(batch.advantages * ratio, batch.advantages * clipped).mean()
        kl = torch.zeros((), device=loss.device)
        if self.config.kl_coef > 0:
            kl = mean_square(velocity - policies.reference(batch.states, sigma, batch.cond)).mean()
            loss = loss + self.config.kl_coef * kl
        metrics = {
            "ratio_error": (ratio.detach() - 1).abs().mean(),
            "clip_fraction": (ratio != clipped).float().mean(),
            "kl": kl.detach(),
        }
        return LossOutput(loss, {name: float(value) for name, value in metrics.items()})

    def _guarded_ratio(self, batch: StepBatch, mean: Tensor, policies: Policies) -> Tensor:
        """Return exp(std (log p - log p_old + |mean - mean_old|^2 / (2 std^2))) [N], its average over elements.

        The square of the drift cancels; its product with the noise that was drawn remains.
        """
        sigma = torch.full((len(batch),), batch.sigma, device=batch.states.device)
        velocity = policies.old(batch.states, sigma, batch.cond)
        old = self.kernel.transition(batch.states, velocity, batch.sigma, batch.sigma_next, ceiling=batch.ceiling)
        noise = (batch.results.float() - old.mean) / old.std
        return (noise * (mean - old.mean)).flatten(1).mean(1).exp()
