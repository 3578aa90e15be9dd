"""CRD, centred reward distillation: the policy's implicit rewards of a prompt's samples are fitted to the judge's.

A policy that maximises a reward under a KL penalty has, but for a constant of the prompt, the log-ratio to its baseline as reward. The
ratio is estimated by how much smaller a sample's velocity error has become, the constant drops out when both rewards are centred
within the group, and the rest is least squares:

    L = A_max / beta mean_i (beta (r_i - mean r) - (a_i - mean a))^2

Unlike a policy gradient, it stops by itself where the fit is reached.

Shape legend: N samples of a batch of whole groups.

Source: CRD (arXiv 2603.14128) by its abstract and by Flow-Factory's trainer (github.com/X-GenGroup/Flow-Factory, commit a0b2bc5), with
its default centring, by plain means. There the baseline of the implicit reward and the policy that samples are two averages of the
policy; here both are `old`, or the baseline is the reference. Their reference is guided; here it is guided exactly as the policy is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

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
from generator_loop.rewards.advantages import optimality

MIN_ERROR = 1e-5
"""Floor of the mean absolute error that weights a sample (Flow-Factory)."""

MIN_KL_COEF = 1e-4
"""Weight of the penalty for samples of reward 0 (Flow-Factory)."""


@dataclass(frozen=True, kw_only=True)
class CRDConfig(ObjectiveConfig):
    """Config of CRD; "Flow-Factory" means its recipe for Stable Diffusion 3.5, "ours" that it differs."""

    name: Literal["crd"] = "crd"
    """Chooses this objective."""

    beta: float = 1.0
    """Strength of the KL penalty that the implicit reward assumes; higher stays nearer to the baseline. Flow-Factory: 1."""

    baseline: Literal["old", "reference"] = "old"
    """Policy against which the implicit reward is measured: the one that sampled, or the reference, which `loop.reset_reference` moves
    each round. Flow-Factory: a moving average of the policy."""

    weight_errors: bool = True
    """Divide each squared error by its own mean absolute error, so that all noise levels count alike. Flow-Factory: true."""

    advantage_clip: float = 5.0
    """Advantage that maps to the reward 1, as its negative maps to 0. Flow-Factory: 5."""

    kl_coef: float = 0.1
    """Weight of the mean squared velocity difference to the reference; 0 skips its forward pass. Flow-Factory: 0.1."""

    adaptive_kl: bool = True
    """Let that weight rise with the reward, from 1e-4 at reward 0 to `kl_coef` at 1: the best samples, where a judge is gamed, are
    held most. Flow-Factory: true."""

    sigma_range: tuple[float, float] = (0.01, 0.99)
    """Sigmas are uniform between these, before the shift. Flow-Factory: 99 % of the sampling schedule."""

    sigma_shift: float = 1.0
    """Moves sigmas up: s u / (1 + (s - 1) u). Use the generator's own shift to train where it samples. Flow-Factory: 3, SD 3.5's."""

    num_updates: int = 2
    """Optimiser steps on one rollout, each with fresh noise, and one fresh sigma for every group. Flow-Factory: 2."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for field in ("beta", "advantage_clip", "num_updates"):
            if not getattr(self, field) > 0:
                raise ValueError(f"objective.{field} must be > 0, got {getattr(self, field)}")
        if self.kl_coef < 0:
            raise ValueError(f"objective.kl_coef must be >= 0, got {self.kl_coef}")
        check_sigmas(self.sigma_range, self.sigma_shift)


class CRD(GroupObjective):
    """Centred reward distillation as an objective of the loop."""

    config_class = CRDConfig
    metrics = ("loss", "implicit_spread", "policy_shift", "kl")
    shares_noise = False

    def fixed(self, noisy: Tensor, batch: GroupBatch, policies: Policies) -> FixedVelocities:
        """Return the velocities of the baseline, and of the reference where a penalty needs it."""
        needs_old, penalised = self.config.baseline == "old", self.config.kl_coef > 0
        return FixedVelocities(
            old=policies.old(noisy, batch.sigma, batch.cond) if needs_old else None,
            reference=policies.reference(noisy, batch.sigma, batch.cond) if penalised or not needs_old else None,
        )

    def measure(self, velocity: Tensor, target: Tensor, fixed: FixedVelocities, batch: GroupBatch) -> Measured:
        """Return each sample's implicit reward and its penalty."""
        config = self.config
        baseline = fixed.old if config.baseline == "old" else fixed.reference
        assert baseline is not None
        gain = self._error(baseline - target) - self._error(velocity - target)
        kl = torch.zeros_like(gain) if fixed.reference is None else mean_square(velocity - fixed.reference)
        return Measured(
            values=gain,
            penalties=self._kl_coef(batch) * kl,
            metrics={"policy_shift": mean_square(velocity.detach() - baseline), "kl": kl.detach()},
        )

    def compare(self, values: Tensor, batch: GroupBatch) -> Slopes:
        """Return the slopes of the least-squares fit by the implicit rewards."""
        centred = values - group_mean(values, batch.group)
        rewards = self._rewards(batch)
        losses, slopes = crd_loss(
            centred, rewards - group_mean(rewards, batch.group), beta=self.config.beta, scale=self.config.advantage_clip
        )
        return Slopes(slopes=slopes, losses=losses, metrics={"implicit_spread": centred.abs()})

    def _error(self, difference: Tensor) -> Tensor:
        error = mean_square(difference)
        if not self.config.weight_errors:
            return error
        return error / difference.detach().abs().flatten(1).mean(1).clamp_min(MIN_ERROR)

    def _rewards(self, batch: GroupBatch) -> Tensor:
        return optimality(batch.advantages, clip=self.config.advantage_clip)

    def _kl_coef(self, batch: GroupBatch) -> Tensor | float:
        high = self.config.kl_coef
        low = min(MIN_KL_COEF, high)
        return low + (high - low) * self._rewards(batch) if self.config.adaptive_kl else high


def crd_loss(implicit: Tensor, rewards: Tensor, *, beta: float, scale: float) -> tuple[Tensor, Tensor]:
    """Compute each sample's misfit and its derivative by its implicit reward.

    Args:
        implicit: implicit rewards, centred within each group [N].
        rewards: rewards, centred likewise [N].
        beta: strength of the KL penalty that the implicit reward assumes.
        scale: factor A_max.

    Returns:
        A_max / beta (beta implicit - rewards)^2 [N], and the derivative [N] of the sum over samples. That sum's derivative by the mean
        that centring takes away is 0, as misfits of a group add up to 0.
    """
    misfit = beta * implicit - rewards
    return scale / beta * misfit.square(), 2 * scale * misfit
