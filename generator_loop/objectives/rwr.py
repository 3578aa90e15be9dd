"""Flow-RWR: imitate one's own samples, the better the more.

Each sample of the old policy is learned from as flow matching learns from data, weighted within its group by the exponential
of its advantage.

Samples of few steps are poorer than the model that drew them, and imitating one's own wears a model down, whatever the
weights. Where samples follow the old policy exactly, imitating all of them alike has the gradient of staying with it:

    E grad |v - target|^2  =  E grad |v - v_old|^2

so `anchor: old` puts the right side in place of the left one, and only what sets a sample apart from its group is learned.

Shape legend: B samples of a rollout, N of a micro-batch.

Source: reward-weighted regression (Peters and Schaal, ICML 2007), with flow matching's loss as in Flow-GRPO's code; weights
are normalised within the group, so that rewards of any scale and sign will do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from generator_loop.flow.path import keyed_noise, logit_normal_sigmas, mean_square, noised
from generator_loop.objectives.base import LossObjective, ObjectiveConfig, Policies
from generator_loop.records import Conditioning, Draw, LossOutput, Rollout, Scored
from generator_loop.rewards.advantages import Advantages


@dataclass(frozen=True, kw_only=True)
class RWRConfig(ObjectiveConfig):
    """Config of Flow-RWR."""

    name: Literal["rwr"] = "rwr"
    """Chooses this objective."""

    temperature: float = 1.0
    """Weights go with exp(advantage / this): lowering it learns from the best samples only."""

    anchor: Literal["old", "none"] = "old"
    """Substitute for imitating all samples alike: the policy that drew them (old), or that imitation itself (none, as it is
    published for samples of others; measured on one's own in docs/toy_objectives.md)."""

    kl_coef: float = 0.0
    """Weight of the mean squared velocity difference to the reference; 0 skips its forward pass."""

    num_updates: int = 1
    """Optimiser steps on one rollout, each with fresh noise and sigmas."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.temperature <= 0 or self.kl_coef < 0 or self.num_updates < 1:
            raise ValueError(
                "objective.temperature must be > 0, objective.kl_coef >= 0 and objective.num_updates >= 1, got "
                f"{self.temperature}, {self.kl_coef} and {self.num_updates}"
            )


@dataclass(frozen=True)
class WeightedBatch:
    """Samples `latents` and `noise` [N, ...], `sigma` [N], and `weights` [N] of mean 1 over each group."""

    latents: Tensor
    noise: Tensor
    sigma: Tensor
    weights: Tensor
    cond: Conditioning

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.sigma)


class RWR(LossObjective[WeightedBatch]):
    """Flow-RWR as an objective of the loop."""

    config_class = RWRConfig
    metrics = ("loss", "error", "kl")

    def plan(
        self, rollout: Rollout, scored: Scored, advantages: Advantages, *, draw: Draw, micro_batch_size: int
    ) -> Iterator[Iterator[WeightedBatch]]:
        """Yield optimiser steps over all usable samples, each with fresh noise; see `Objective.plan`."""
        weights = group_weights(
            advantages.values, advantages.usable, group_size=rollout.group_size, temperature=self.config.temperature
        )
        samples = advantages.usable.nonzero().flatten().tolist()
        for update in range(self.num_updates):
            yield _micro_batches(rollout, samples, weights, draw.fork(f"rwr {update}"), micro_batch_size)

    def loss(self, batch: WeightedBatch, policies: Policies) -> LossOutput:
        """Compute the loss of one micro-batch.

        Args:
            batch: weighted samples with noise.
            policies: the policies.

        Returns:
            Mean weighted error, or with an anchor that of the weights beyond 1 and the squared difference to the old policy;
            `error` is the plain one, `kl` the mean squared velocity difference to the reference, 0 where `kl_coef` is 0.
        """
        noisy, target = noised(batch.latents, batch.noise, batch.sigma)
        velocity = policies.policy(noisy, batch.sigma, batch.cond)
        error = mean_square(velocity - target)  # [N]
        if self.config.anchor == "old":
            old = policies.old(noisy, batch.sigma, batch.cond)
            loss = ((batch.weights - 1) * error + mean_square(velocity - old)).mean()
        else:
            loss = (batch.weights * error).mean()
        kl = torch.zeros((), device=loss.device)
        if self.config.kl_coef > 0:
            kl = mean_square(velocity - policies.reference(noisy, batch.sigma, batch.cond)).mean()
            loss = loss + self.config.kl_coef * kl
        return LossOutput(loss, {"error": float(error.detach().mean()), "kl": float(kl.detach())})


def group_weights(advantages: Tensor, usable: Tensor, *, group_size: int, temperature: float) -> Tensor:
    """Return exp(A / temperature) [B], of mean 1 over the usable samples of each group and 0 for the others.

    Args:
        advantages: [B].
        usable: bool [B].
        group_size: samples of a prompt.
        temperature: > 0.

    Returns:
        [B]; a group without usable samples has zeros.
    """
    scaled = torch.where(usable, advantages / temperature, -torch.inf)
    scaled, usable = (rearrange(value, "(b g) -> b g", g=group_size) for value in (scaled, usable))
    share = torch.where(usable, scaled.softmax(dim=1), 0.0)
    return rearrange(share * usable.sum(dim=1, keepdim=True), "b g -> (b g)")


def _micro_batches(
    rollout: Rollout, samples: list[int], weights: Tensor, draw: Draw, micro_batch_size: int
) -> Iterator[WeightedBatch]:
    size, device = rollout.group_size, rollout.latents.device
    for start in range(0, len(samples), micro_batch_size):
        micro_batch = samples[start : start + micro_batch_size]
        keys = [(rollout.prompts[sample // size].prompt_id, sample % size) for sample in micro_batch]
        index = torch.tensor(micro_batch, device=device)
        yield WeightedBatch(
            latents=rollout.latents[index],
            noise=keyed_noise(draw, keys, rollout.latents),
            sigma=logit_normal_sigmas(draw, keys).to(device),
            weights=weights[torch.tensor(micro_batch)].to(device),
            cond=rollout.cond.select(index),
        )
