"""DGPO, direct group preference optimisation: a whole group's better samples are preferred to its worse ones at once.

All samples of a prompt are noised alike, by one noise and one sigma. Where d is a sample's velocity error, the group's better
samples should gain on the reference against its worse ones, each with the weight of its advantage:

    s = beta / |G| sum_i A_i (d_i - d_i of the reference),    L = -log sigmoid(-s) / beta

The advantages of a group add up to 0 (unless some are clipped), so that the unknown normaliser of preference models drops out. The gradient is
sigmoid(s) A_i grad d_i, averaged over samples; a sample that is already farther from the old policy than the clip range has none.

Shape legend: N samples of a batch of whole groups.

Source: DGPO (arXiv 2510.08425), with the clipping of its authors' code (github.com/Luo-Yihong/DGPO, commit 01ceb4b). Their
reference may be guided; here it is guided exactly as the policy is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from generator_loop.flow.path import check_sigmas, mean_square
from generator_loop.objectives.base import ObjectiveConfig, Policies
from generator_loop.objectives.whole_groups import (
    FixedVelocities,
    GroupBatch,
    GroupObjective,
    Measured,
    Slopes,
    group_mean,
)


@dataclass(frozen=True, kw_only=True)
class DGPOConfig(ObjectiveConfig):
    """Config of DGPO; "authors" means the recipes of their code for Stable Diffusion 3.5, "ours" that theirs differ."""

    name: Literal["dgpo"] = "dgpo"
    """Chooses this objective."""

    beta_mean: float = 100.0
    """Inverse temperature on errors averaged (not summed) over elements; higher stays nearer to the reference. Authors: 100, or 10
    with PickScore."""

    clip_range: float = 0.01
    """Samples whose ratio exp(old error - error) has left 1 +- this in their advantage's direction pull no further. Authors: 0.01."""

    advantage_clip: float = 5.0
    """Advantages beyond this count as this. Authors: 5."""

    kl_coef: float = 0.02
    """Weight of the mean squared velocity difference to the reference. Authors: 0.02, or 0.001 with PickScore."""

    sigma_range: tuple[float, float] = (0.3, 0.99)
    """Sigmas are uniform between these, before the shift. Authors: the steps of the sampling schedule from 0.3 up."""

    sigma_shift: float = 1.0
    """Moves sigmas up: s u / (1 + (s - 1) u). Use the generator's own shift to train where it samples. Authors: 3, SD 3.5's."""

    num_updates: int = 4
    """Optimiser steps on one rollout, each with one fresh noise and sigma for every group. Ours; authors: 1 step over 4 sigmas
    of each."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for field in ("beta_mean", "clip_range", "advantage_clip", "num_updates"):
            if not getattr(self, field) > 0:
                raise ValueError(f"objective.{field} must be > 0, got {getattr(self, field)}")
        if self.kl_coef < 0:
            raise ValueError(f"objective.kl_coef must be >= 0, got {self.kl_coef}")
        check_sigmas(self.sigma_range, self.sigma_shift)


class DGPO(GroupObjective):
    """Direct group preference optimisation as an objective of the loop."""

    config_class = DGPOConfig
    metrics = ("loss", "implicit_accuracy", "margin", "clip_fraction", "kl")
    shares_noise = True

    def fixed(self, noisy: Tensor, batch: GroupBatch, policies: Policies) -> FixedVelocities:
        """Return the velocities of the old policy, for the clip, and of the reference."""
        return FixedVelocities(
            old=policies.old(noisy, batch.sigma, batch.cond),
            reference=policies.reference(noisy, batch.sigma, batch.cond),
        )

    def measure(self, velocity: Tensor, target: Tensor, fixed: FixedVelocities, batch: GroupBatch) -> Measured:
        """Return each sample's error relative to the reference, without gradient where it is clipped."""
        assert fixed.old is not None and fixed.reference is not None
        error = mean_square(velocity - target)
        ratio = (mean_square(fixed.old - target) - error.detach()).exp()
        clipped = is_clipped(ratio, batch.advantages, clip_range=self.config.clip_range)
        kl = mean_square(velocity - fixed.reference)
        return Measured(
            values=torch.where(clipped, error.detach(), error) - mean_square(fixed.reference - target),
            penalties=self.config.kl_coef * kl,
            metrics={"clip_fraction": clipped.float(), "kl": kl.detach()},
        )

    def compare(self, values: Tensor, batch: GroupBatch) -> Slopes:
        """Return the slopes by which a group's preference pulls on its samples' errors."""
        config = self.config
        advantages = batch.advantages.clamp(-config.advantage_clip, config.advantage_clip)
        margin = -group_mean(advantages * values, batch.group)
        losses, slopes = dgpo_loss(margin, advantages, beta_mean=config.beta_mean)
        return Slopes(
            slopes=slopes,
            losses=losses,
            metrics={"implicit_accuracy": (margin > 0).float(), "margin": margin},
        )


def dgpo_loss(margin: Tensor, advantages: Tensor, *, beta_mean: float) -> tuple[Tensor, Tensor]:
    """Compute each group's loss and its derivative by each sample's error.

    Args:
        margin: by how much the policy prefers the better samples of the group, -(1 / |G|) sum_i A_i (d_i - d_i of the reference), at
            each of its samples [N].
        advantages: [N].
        beta_mean: inverse temperature.

    Returns:
        -log sigmoid(beta margin) / beta [N], log 2 / beta where policy and reference agree, and sigmoid(-beta margin) A [N], which
        is the derivative of the sum over samples.
    """
    return -logsigmoid(beta_mean * margin) / beta_mean, torch.sigmoid(-beta_mean * margin) * advantages


def is_clipped(ratio: Tensor, advantages: Tensor, *, clip_range: float) -> Tensor:
    """Return whether the ratio has left 1 +- clip_range in the direction of the advantage, bool [N]."""
    return torch.where(advantages > 0, ratio > 1 + clip_range, (advantages < 0) & (ratio < 1 - clip_range))
