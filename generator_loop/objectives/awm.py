"""AWM, advantage weighted matching: flow matching's own loss on one's samples, each weighted by its advantage.

A sample's error stands for its log-likelihood, log p = -(sigma^q / p) (e + eps)^p with the velocity error e, so that flow matching
on good samples and away from bad ones is a policy gradient. Its ratio to the policy that sampled is clipped as in PPO, and two
penalties hold the policy near that one and near the reference: without them matching away from bad samples knows no end.

Shape legend: B samples of a rollout, N of a micro-batch.

Source: AWM (arXiv 2509.25050), with powers, scale of advantages, ratio and penalties as in its authors' code
(github.com/scxue/advantage_weighted_matching, commit be51372).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from generator_loop.flow.path import check_sigmas, keyed_noise, mean_square, noised, uniform_sigmas
from generator_loop.objectives.base import LossObjective, ObjectiveConfig, Policies
from generator_loop.records import Conditioning, Draw, LossOutput, Rollout, Scored
from generator_loop.rewards.advantages import Advantages

MIN_ERROR = 1e-10
"""Added to a squared error before its root, whose slope is infinite at 0 (authors' code)."""


@dataclass(frozen=True, kw_only=True)
class AWMConfig(ObjectiveConfig):
    """Config of AWM; "authors" means the recipes of their code for Stable Diffusion 3.5, "ours" that theirs differ."""

    name: Literal["awm"] = "awm"
    """Chooses this objective."""

    error_power: float = 0.25
    """p: 1 takes the squared error as it is, lowering it lets large errors pull less. Authors: 0.25."""

    sigma_power: float = 1.0
    """q: an error counts with sigma to this power; 0 counts all noise levels alike. Authors: 1."""

    clip_range: float = 1.0
    """The ratio of likelihoods counts within 1 +- this. Authors: 1, so that the penalties do the holding; Flow-Factory: 1e-4."""

    advantage_clip: float = 5.0
    """Advantage that counts as 1, and beyond which advantages count as this. Authors: 5."""

    old_kl_coef: float = 1.0
    """Weight of the mean squared velocity difference to the policy that sampled. Authors: 1, to an average of the policy as it is
    here with `update.old_decay` (theirs rises to 0.3)."""

    kl_coef: float = 1e-3
    """Weight of the same to the reference; 0 skips its forward pass. Authors: 1e-4 to 3e-3."""

    sigma_range: tuple[float, float] = (0.01, 0.99)
    """Sigmas are uniform between these, before the shift. Ours; authors: the sampling schedule without its first step."""

    sigma_shift: float = 1.0
    """Moves sigmas up: s u / (1 + (s - 1) u). Use the generator's own shift to train where it samples. Authors: 3, SD 3.5's."""

    num_updates: int = 1
    """Optimiser steps on one rollout, each with fresh noise and sigmas; above 1 the clip range matters. Authors: 1, over 6
    sigmas of each sample."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for field in ("error_power", "clip_range", "advantage_clip", "num_updates"):
            if not getattr(self, field) > 0:
                raise ValueError(f"objective.{field} must be > 0, got {getattr(self, field)}")
        for field in ("sigma_power", "old_kl_coef", "kl_coef"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"objective.{field} must be >= 0, got {getattr(self, field)}")
        check_sigmas(self.sigma_range, self.sigma_shift)


@dataclass(frozen=True)
class AWMBatch:
    """Samples `latents` and `noise` [N, ...], `sigma` [N], and their clipped `advantages` [N] in [-1, 1]."""

    latents: Tensor
    noise: Tensor
    sigma: Tensor
    advantages: Tensor
    cond: Conditioning

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.sigma)


class AWM(LossObjective[AWMBatch]):
    """Advantage weighted matching as an objective of the loop."""

    config_class = AWMConfig
    metrics = ("loss", "error", "clip_fraction", "policy_shift", "kl")

    def plan(
        self, rollout: Rollout, scored: Scored, advantages: Advantages, *, draw: Draw, micro_batch_size: int
    ) -> Iterator[Iterator[AWMBatch]]:
        """Yield optimiser steps over all usable samples, each with fresh noise and sigmas; see `Objective.plan`."""
        for update in range(self.num_updates):
            yield self._micro_batches(rollout, advantages, draw.fork(f"awm {update}"), micro_batch_size)

    def _micro_batches(
        self, rollout: Rollout, advantages: Advantages, draw: Draw, micro_batch_size: int
    ) -> Iterator[AWMBatch]:
        config, device, size = self.config, rollout.latents.device, rollout.group_size
        scaled = (advantages.values / config.advantage_clip).clamp(-1, 1)
        for samples in advantages.usable.nonzero().flatten().split(micro_batch_size):
            keys = [(rollout.prompts[sample // size].prompt_id, sample % size) for sample in samples.tolist()]
            if not keys:
                return
            sigma = uniform_sigmas(draw, keys, between=config.sigma_range, shift=config.sigma_shift)
            index = samples.to(device)
            yield AWMBatch(
                latents=rollout.latents[index],
                noise=keyed_noise(draw, keys, rollout.latents),
                sigma=sigma.to(device),
                advantages=scaled[samples].to(device),
                cond=rollout.cond.select(index),
            )

    def loss(self, batch: AWMBatch, policies: Policies) -> LossOutput:
        """Compute the loss of one micro-batch.

        Args:
            batch: samples with noise and advantages.
            policies: the policies.

        Returns:
            Mean loss; `error` is the plain squared velocity error, `clip_fraction` the share of samples whose ratio is out of range,
            `policy_shift` and `kl` the mean squared velocity differences to the old policy and to the reference, the latter 0 where
            `kl_coef` is 0.
        """
        config = self.config
        noisy, target = noised(batch.latents, batch.noise, batch.sigma)
        old = policies.old(noisy, batch.sigma, batch.cond)
        velocity = policies.policy(noisy, batch.sigma, batch.cond)
        error, shift = mean_square(velocity - target), mean_square(velocity - old)
        powers = {"error_power": config.error_power, "sigma_power": config.sigma_power}
        ratio = (
            matching_log_prob(error, batch.sigma, **powers)
            - matching_log_prob(mean_square(old - target), batch.sigma, **powers)
        ).exp()
        loss = (
            awm_loss(ratio, batch.advantages, clip_range=config.clip_range).mean() + config.old_kl_coef * shift.mean()
        )
        kl = torch.zeros((), device=loss.device)
        if config.kl_coef > 0:
            kl = mean_square(velocity - policies.reference(noisy, batch.sigma, batch.cond)).mean()
            loss = loss + config.kl_coef * kl
        metrics = {
            "error": error.detach().mean(),
            "clip_fraction": ((ratio.detach() - 1).abs() > config.clip_range).float().mean(),
            "policy_shift": shift.detach().mean(),
            "kl": kl.detach(),
        }
        return LossOutput(loss, {name: float(value) for name, value in metrics.items()})


def matching_log_prob(error: Tensor, sigma: Tensor, *, error_power: float, sigma_power: float) -> Tensor:
    """Compute the log-likelihood that a sample's velocity error stands for, up to a constant.

    Args:
        error: squared velocity errors averaged over elements, e >= 0 [N].
        sigma: [N] in [0, 1].
        error_power: p > 0.
        sigma_power: q >= 0.

    Returns:
        -(sigma^q / p) ((e + eps)^p - eps^p), [N]; 0 where there is no error, and -sigma^q e for p = 1.
    """
    growth = (error + MIN_ERROR) ** error_power - MIN_ERROR**error_power
    return -(sigma**sigma_power) * growth / error_power


def awm_loss(ratio: Tensor, advantages: Tensor, *, clip_range: float) -> Tensor:
    """Compute the clipped loss of each sample.

    Args:
        ratio: likelihood by the policy over that by the policy that sampled, with gradient [N].
        advantages: [N].
        clip_range: the ratio counts within 1 +- this.

    Returns:
        max(-A ratio, -A clip(ratio)), [N]; at ratio 1 its gradient is A times that of the weighted error.
    """
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped)
