"""DiffusionNFT: learn from good and bad samples on the forward process, without trajectories or likelihoods.

Shape legend: B samples of a rollout, N of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from generator_loop.flow.path import check_sigmas, keyed_noise, like_latents, mean_square, noised, uniform_sigmas
from generator_loop.objectives.base import LossObjective, ObjectiveConfig, Policies
from generator_loop.records import Conditioning, Draw, LossOutput, Rollout, Scored
from generator_loop.rewards.advantages import Advantages, optimality

MIN_ERROR = 1e-5
"""Floor of the mean absolute error that weights a sample (authors' code)."""


@dataclass(frozen=True, kw_only=True)
class NFTConfig(ObjectiveConfig):
    """Config of DiffusionNFT; "measured" defaults come from the embedded moving-shapes world."""

    name: Literal["nft"] = "nft"
    """Chooses this objective."""

    beta: float = 1.0
    """Strength of the implicit guidance, above 0; small values push farther from the old policy. Paper: 1, or 0.1."""

    advantage_clip: float = 2.0
    """Advantage that counts as certainly good or bad, in reward deviations. Measured: 2; paper: 5."""

    num_updates: int = 8
    """Optimiser steps on one rollout; more reuse each sample more often. Measured: 8."""

    samples_per_group: int = 4
    """Samples of each prompt in one optimiser step, drawn without repeats; at most the group size. Measured: 4 of 8."""

    sigma_range: tuple[float, float] = (0.01, 0.99)
    """Sigmas are uniform between these, before the shift. Paper: 99 % of the sampling schedule."""

    sigma_shift: float = 1.0
    """Moves sigmas up: s u / (1 + (s - 1) u). Use the generator's own shift to train where it samples."""

    kl_coef: float = 0.0
    """Weight of the mean squared velocity difference to the reference; 0 skips its forward pass. Paper: 1e-4."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for field in ("beta", "advantage_clip", "num_updates", "samples_per_group"):
            if not getattr(self, field) > 0:
                raise ValueError(f"objective.{field} must be > 0, got {getattr(self, field)}")
        check_sigmas(self.sigma_range, self.sigma_shift)
        if self.kl_coef < 0:
            raise ValueError(f"objective.kl_coef must be >= 0, got {self.kl_coef}")


@dataclass(frozen=True)
class NFTBatch:
    """Samples `latents`, `noise` [N, ...], `sigma` [N], and `optimality` r [N] in [0, 1], the weight of the good branch."""

    latents: Tensor
    noise: Tensor
    sigma: Tensor
    cond: Conditioning
    optimality: Tensor

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.sigma)


class NFT(LossObjective[NFTBatch]):
    """DiffusionNFT as an objective of the loop."""

    config_class = NFTConfig
    metrics = ("loss", "goodness", "policy_shift", "kl")

    def plan(
        self, rollout: Rollout, scored: Scored, advantages: Advantages, *, draw: Draw, micro_batch_size: int
    ) -> Iterator[Iterator[NFTBatch]]:
        """Yield optimiser steps, each with a fresh choice of samples, noise and sigmas; see `Objective.plan`."""
        for update in range(self.num_updates):
            yield self._micro_batches(rollout, advantages, draw.fork(f"nft {update}"), micro_batch_size)

    def _micro_batches(
        self, rollout: Rollout, advantages: Advantages, draw: Draw, micro_batch_size: int
    ) -> Iterator[NFTBatch]:
        device, size = rollout.latents.device, rollout.group_size
        samples = [
            sample for group in range(len(rollout.prompts)) for sample in self._choose(rollout, advantages, draw, group)
        ]
        for start in range(0, len(samples), micro_batch_size):
            micro_batch = samples[start : start + micro_batch_size]
            keys = [(rollout.prompts[sample // size].prompt_id, sample % size) for sample in micro_batch]
            index = torch.tensor(micro_batch, device=device)
            yield NFTBatch(
                latents=rollout.latents[index],
                noise=keyed_noise(draw, keys, rollout.latents),
                sigma=uniform_sigmas(draw, keys, between=self.config.sigma_range, shift=self.config.sigma_shift).to(
                    device
                ),
                cond=rollout.cond.select(index),
                optimality=optimality(advantages.values[torch.tensor(micro_batch)], clip=self.config.advantage_clip).to(
                    device
                ),
            )

    def _choose(self, rollout: Rollout, advantages: Advantages, draw: Draw, group: int) -> list[int]:
        usable = rearrange(advantages.usable, "(b g) -> b g", g=rollout.group_size)[group].nonzero().flatten().tolist()
        shuffle = draw.fork("choice").generator(rollout.prompts[group].prompt_id, 0)
        order = torch.randperm(len(usable), generator=shuffle)[: self.config.samples_per_group]
        return [group * rollout.group_size + usable[place] for place in order.tolist()]

    def loss(self, batch: NFTBatch, policies: Policies) -> LossOutput:
        """Compute the loss of one micro-batch.

        Args:
            batch: samples with noise and optimality probability.
            policies: the policies.

        Returns:
            Mean loss; `kl` is the mean squared velocity difference to the reference, 0 where `kl_coef` is 0.
        """
        noisy, target = noised(batch.latents, batch.noise, batch.sigma)
        old = policies.old(noisy, batch.sigma, batch.cond)
        velocity = policies.policy(noisy, batch.sigma, batch.cond)
        config = self.config
        losses = nft_loss(velocity, old, target, batch.sigma, batch.optimality, beta=config.beta)
        loss = config.advantage_clip * losses.mean()
        kl = torch.zeros((), device=loss.device)
        if config.kl_coef > 0:
            kl = mean_square(velocity - policies.reference(noisy, batch.sigma, batch.cond)).mean()
            loss = loss + config.kl_coef * kl
        metrics = {
            "goodness": batch.optimality.mean(),
            "policy_shift": mean_square(velocity.detach() - old).mean(),
            "kl": kl.detach(),
        }
        return LossOutput(loss, {name: float(value) for name, value in metrics.items()})


def nft_loss(
    velocity: Tensor, old: Tensor, target: Tensor, sigma: Tensor, optimality: Tensor, *, beta: float
) -> Tensor:
    """Compute DiffusionNFT's loss for each sample, before the factor A_max.

    The good branch (1 - beta) v_old + beta v and the bad one (1 + beta) v_old - beta v are both drawn to the target,
    with weights r and 1 - r. Errors are taken in x_0 and divided by their own mean absolute value.

    Args:
        velocity: v of the policy, with gradient [N, ...].
        old: v_old of the policy that sampled [N, ...].
        target: eps - x_0 [N, ...].
        sigma: [N] in [0, 1].
        optimality: r in [0, 1] [N].
        beta: strength of the implicit guidance.

    Returns:
        [N].

    Source:
        DiffusionNFT (arXiv 2509.16117) eq. 5 and the adaptive weighting of its code.
    """
    good = _weighted_error((1 - beta) * old + beta * velocity - target, sigma)
    bad = _weighted_error((1 + beta) * old - beta * velocity - target, sigma)
    return (optimality * good + (1 - optimality) * bad) / beta


def _weighted_error(error: Tensor, sigma: Tensor) -> Tensor:
    # x_sigma - sigma v is the clean sample, so sigma times a velocity error is its error in x_0
    error = error * like_latents(sigma, error)
    weight = error.detach().abs().flatten(1).mean(1).clamp_min(MIN_ERROR)
    return mean_square(error) / weight
