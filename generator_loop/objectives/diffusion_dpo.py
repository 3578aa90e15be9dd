"""Diffusion-DPO for flow matching: prefer winners over losers by their velocity errors.

Shape legend: B samples of a rollout, G group size, N pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from einops import repeat
from torch import Tensor
from torch.nn.functional import logsigmoid

from generator_loop.flow.path import keyed_noise, logit_normal_sigmas, mean_square, noised
from generator_loop.objectives.base import LossObjective, ObjectiveConfig, Policies
from generator_loop.records import Conditioning, Draw, LossOutput, Rollout, Scored
from generator_loop.rewards.advantages import Advantages


@dataclass(frozen=True, kw_only=True)
class DiffusionDPOConfig(ObjectiveConfig):
    """Config of Diffusion-DPO; "measured" defaults come from the embedded moving-shapes world."""

    name: Literal["dpo"] = "dpo"
    """Chooses this objective."""

    beta_mean: float = 200.0
    """Inverse temperature on errors averaged (not summed) over elements; higher stays nearer to the reference.

    Measured: 200 with the anchor; Diffusion-DPO: 5000; flow_grpo: 100.
    """

    anchor: float = 10.0
    """Weight of the winners' own error relative to the reference. Without it both errors grow while their margin
    widens, and videos dissolve. Measured: 10."""

    num_pairs: int = 2
    """Pairs of each prompt: best with worst, second best with second worst, and so on. Measured: 2 of 8 samples."""

    min_gap: float = 0.05
    """Least difference of rewards in a pair; nearer pairs teach noise and are skipped. Measured: 0.05 for rewards in
    [0, 1]."""

    pair_by: tuple[str, ...] = ("reward",)
    """Scores by each of which `num_pairs` pairs of a prompt are chosen: reward, a dimension, or a column of `reward.columns`.
    VQ-Insight chooses by its comparator and by its scorers, and learns from both sets."""

    dominance: bool = False
    """Keep a pair only if the winner is not worse in any dimension that the judge scored (VisionReward's MPO)."""

    num_updates: int = 8
    """Optimiser steps on one rollout, each on all pairs with fresh noise. Measured: 8."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for field in ("beta_mean", "num_pairs", "num_updates"):
            if not getattr(self, field) > 0:
                raise ValueError(f"objective.{field} must be > 0, got {getattr(self, field)}")
        if not self.pair_by or len(set(self.pair_by)) < len(self.pair_by):
            raise ValueError(f"objective.pair_by must name scores, each once, got {list(self.pair_by)}")
        for field in ("anchor", "min_gap"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"objective.{field} must be >= 0, got {getattr(self, field)}")


@dataclass(frozen=True)
class PairBatch:
    """Winners and losers [N, ...] of the same prompts, with the noise [N, ...] and the sigma [N] that they share."""

    winners: Tensor
    losers: Tensor
    noise: Tensor
    sigma: Tensor
    cond: Conditioning

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.sigma)


class DiffusionDPO(LossObjective[PairBatch]):
    """Diffusion-DPO on pairs chosen within each group, as an objective of the loop."""

    config_class = DiffusionDPOConfig
    metrics = ("loss", "implicit_accuracy", "margin", "winner_error", "loser_error")

    def plan(
        self, rollout: Rollout, scored: Scored, advantages: Advantages, *, draw: Draw, micro_batch_size: int
    ) -> Iterator[Iterator[PairBatch]]:
        """Yield optimiser steps over all pairs, each with fresh noise; see `Objective.plan`."""
        chosen = [
            choose_pairs(
                torch.where(scored.valid, scored.by(name), torch.nan),
                group_size=rollout.group_size,
                num_pairs=self.config.num_pairs,
                min_gap=self.config.min_gap,
            )
            for name in self.config.pair_by
        ]
        pairs = list(dict.fromkeys(pair for pairs in chosen for pair in pairs))  # a pair of both sets counts once
        if self.config.dominance:
            pairs = [pair for pair in pairs if dominates(scored.scores, *pair)]
        for update in range(self.num_updates):
            yield _micro_batches(rollout, pairs, draw.fork(f"dpo {update}"), micro_batch_size)

    def loss(self, batch: PairBatch, policies: Policies) -> LossOutput:
        """Compute the loss of one micro-batch.

        Args:
            batch: pairs with shared noise.
            policies: the policies.

        Returns:
            Mean loss; `winner_error` and `loser_error` are errors relative to the reference, `margin` their
            difference (positive where the policy prefers the winner), `implicit_accuracy` how often it does.
        """
        samples = torch.cat([batch.winners, batch.losers])
        noise, sigma = (repeat(shared, "n ... -> (2 n) ...") for shared in (batch.noise, batch.sigma))
        cond = Conditioning({name: torch.cat([value, value]) for name, value in batch.cond.tensors.items()})
        noisy, target = noised(samples, noise, sigma)
        reference_error = mean_square(policies.reference(noisy, sigma, cond) - target)
        error = mean_square(policies.policy(noisy, sigma, cond) - target) - reference_error
        winner, loser = error.chunk(2)  # [N] each
        loss = dpo_loss(winner, loser, beta_mean=self.config.beta_mean).mean() + self.config.anchor * winner.mean()
        margin = (loser - winner).detach()
        metrics = {
            "implicit_accuracy": (margin > 0).float().mean(),
            "margin": margin.mean(),
            "winner_error": winner.detach().mean(),
            "loser_error": loser.detach().mean(),
        }
        return LossOutput(loss, {name: float(value) for name, value in metrics.items()})


def dpo_loss(winner_error: Tensor, loser_error: Tensor, *, beta_mean: float) -> Tensor:
    """Compute the preference loss of each pair.

    Args:
        winner_error: e_w - e_w_ref [N], squared velocity errors averaged over elements.
        loser_error: e_l - e_l_ref [N].
        beta_mean: inverse temperature.

    Returns:
        -log sigmoid(-beta / 2 (winner_error - loser_error)), [N]; log 2 where policy and reference agree.

    Source:
        Diffusion-DPO (arXiv 2311.12908) eq. 14, with flow matching's velocity errors.
    """
    return -logsigmoid(-beta_mean / 2 * (winner_error - loser_error))


def choose_pairs(rewards: Tensor, *, group_size: int, num_pairs: int, min_gap: float) -> list[tuple[int, int]]:
    """Pair the best samples of each group with its worst.

    Args:
        rewards: [B]; samples whose reward is NaN or infinite are left out.
        group_size: samples of one prompt.
        num_pairs: most pairs of one group.
        min_gap: least difference of rewards within a pair.

    Returns:
        Numbers of the samples (winner, loser).
    """
    pairs = []
    for start in range(0, len(rewards), group_size):
        group = rewards[start : start + group_size].tolist()
        order = sorted((place for place, reward in enumerate(group) if math.isfinite(reward)), key=group.__getitem__)
        for rank in range(min(num_pairs, len(order) // 2)):
            loser, winner = order[rank], order[-1 - rank]
            if group[winner] > group[loser] and group[winner] - group[loser] >= min_gap:
                pairs.append((start + winner, start + loser))
    return pairs


def dominates(scores: Mapping[str, Tensor], winner: int, loser: int) -> bool:
    """Return whether the winner is not worse in any dimension; one that either lacks does not count.

    Args:
        scores: dimension -> [B].
        winner: number of a sample.
        loser: number of a sample.

    Returns:
        True if it dominates.

    Source:
        VisionReward (arXiv 2412.21059), multi-objective preference optimisation.
    """
    return not any(bool(values[winner] < values[loser]) for values in scores.values())  # NaN is not below


def _micro_batches(
    rollout: Rollout, pairs: list[tuple[int, int]], draw: Draw, micro_batch_size: int
) -> Iterator[PairBatch]:
    size, device = rollout.group_size, rollout.latents.device
    for start in range(0, len(pairs), micro_batch_size):
        micro_batch = pairs[start : start + micro_batch_size]
        keys = [(rollout.prompts[winner // size].prompt_id, winner % size) for winner, _ in micro_batch]
        winners, losers = torch.tensor(micro_batch, device=device).unbind(1)
        yield PairBatch(
            winners=rollout.latents[winners],
            losers=rollout.latents[losers],
            noise=keyed_noise(draw, keys, rollout.latents),
            sigma=logit_normal_sigmas(draw, keys).to(device),
            cond=rollout.cond.select(winners),
        )
