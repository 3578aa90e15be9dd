"""ReFL: from a random late step jump straight to the clean clip, and push the reward's gradient through that one step.

The sampler's states of the last steps are kept; each sample is taken up at one of them, its clean latents are predicted by
a single call of the policy, decoded and scored. Memory is that of one step with decoder and judge; the reward sees a
one-step prediction, blurred where the step is early, rather than the sample itself (which DRaFT differentiates).

Shape legend: B samples of a rollout, N of a micro-batch, K kept steps.

Source: ImageReward (arXiv 2304.05977), algorithm 1; its loss on pre-training data is replaced by the distance to the
reference, as a loop on prompts has no such data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from generator_loop.flow.path import like_latents, mean_square
from generator_loop.objectives.base import LossObjective, ObjectiveConfig, Policies, check_decoded, drawn_excerpt
from generator_loop.records import Conditioning, Draw, LossOutput, Prompt, Rollout, Scored
from generator_loop.rewards.advantages import Advantages


@dataclass(frozen=True, kw_only=True)
class ReFLConfig(ObjectiveConfig):
    """Config of ReFL."""

    differentiates = True

    name: Literal["refl"] = "refl"
    """Chooses this objective."""

    tail_span: float = 0.5
    """Sigma that the steps cover from which one is drawn, in (0, 1]; raising it reaches layout and shows the judge blur."""

    target: float | None = None
    """Rewards above this are learned from no more, as relu(target - reward); null maximises the reward."""

    kl_coef: float = 0.0
    """Weight of the mean squared velocity difference to the reference; 0 skips its forward pass."""

    decode_latent_frames: int | None = None
    """Consecutive latent frames that are decoded and judged, at a place drawn anew for each optimiser step; null decodes all.

    Fewer cost less memory and time, as frames after the excerpt are not decoded and those before it carry no gradient, but on
    LTX (and in part HunyuanVideo and CogVideoX), whose decoders mix frames. The judge sees a short excerpt, so that faults
    which need time to show are missed. VADER decodes one frame.
    """

    num_updates: int = 1
    """Optimiser steps on one rollout, each from other random steps."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not 0 < self.tail_span <= 1:
            raise ValueError(f"objective.tail_span must be in (0, 1], got {self.tail_span}")
        if self.kl_coef < 0 or self.num_updates < 1:
            raise ValueError(
                "objective.kl_coef must be >= 0 and objective.num_updates >= 1, got "
                f"{self.kl_coef} and {self.num_updates}"
            )
        check_decoded(self.decode_latent_frames)


@dataclass(frozen=True)
class LateBatch:
    """States [N, ...] of the sampler at `sigma` [N], each sample's own; `excerpt` is the latent frames judged, None for all."""

    prompts: tuple[Prompt, ...]
    states: Tensor
    sigma: Tensor
    cond: Conditioning
    excerpt: range | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.sigma)


class ReFL(LossObjective[LateBatch]):
    """ReFL as an objective of the loop."""

    config_class = ReFLConfig
    metrics = ("loss", "reward", "valid", "kl")

    def __init__(self, config: ReFLConfig) -> None:
        """Keep the config.

        Args:
            config: of the objective.
        """
        super().__init__(config)
        self.tail_span = config.tail_span

    def plan(
        self, rollout: Rollout, scored: Scored, advantages: Advantages, *, draw: Draw, micro_batch_size: int
    ) -> Iterator[Iterator[LateBatch]]:
        """Yield optimiser steps over all usable samples, each from other steps; see `Objective.plan`."""
        samples = advantages.usable.nonzero().flatten().tolist()
        for update in range(self.num_updates):
            streams = draw.fork(f"refl {update}")
            excerpt = drawn_excerpt(self.config.decode_latent_frames, rollout.latents, streams)
            yield _micro_batches(rollout, samples, excerpt, streams, micro_batch_size)

    def loss(self, batch: LateBatch, policies: Policies) -> LossOutput:
        """Compute the loss of one micro-batch.

        Args:
            batch: late states of the sampler.
            policies: the policies, the decoder and the reward.

        Returns:
            Mean loss; `reward` is that of the predicted clean clips and `valid` the share of those that have one, `kl` the mean
            squared velocity difference to the reference, 0 where `kl_coef` is 0.
        """
        velocity = policies.policy(batch.states, batch.sigma, batch.cond)
        clean = batch.states - like_latents(batch.sigma, velocity) * velocity
        rewards = policies.reward(policies.frames(clean, batch.excerpt), batch.prompts)
        valid = rewards.isfinite()
        known = torch.where(valid, rewards, 0.0)
        short = -known if self.config.target is None else (self.config.target - known).relu()
        loss = torch.where(valid, short, 0.0).mean()
        kl = torch.zeros((), device=loss.device)
        if self.config.kl_coef > 0:
            kl = mean_square(velocity - policies.reference(batch.states, batch.sigma, batch.cond)).mean()
            loss = loss + self.config.kl_coef * kl
        metrics = {"reward": known.detach().mean(), "valid": valid.float().mean(), "kl": kl.detach()}
        return LossOutput(loss, {name: float(value) for name, value in metrics.items()})


def _micro_batches(
    rollout: Rollout, samples: list[int], excerpt: range | None, draw: Draw, micro_batch_size: int
) -> Iterator[LateBatch]:
    assert rollout.tail is not None, "the rollout must be drawn with the objective's tail_span"
    size, device, tail = rollout.group_size, rollout.latents.device, rollout.tail
    for start in range(0, len(samples), micro_batch_size):
        micro_batch = samples[start : start + micro_batch_size]
        prompts = tuple(rollout.prompts[sample // size] for sample in micro_batch)
        keys = [(prompt.prompt_id, sample % size) for prompt, sample in zip(prompts, micro_batch, strict=True)]
        steps = torch.tensor([int(torch.randint(len(tail.states), (), generator=draw.generator(*key))) for key in keys])
        index, steps = torch.tensor(micro_batch, device=device), steps.to(device)
        yield LateBatch(
            prompts=prompts,
            states=tail.states[steps, index],
            sigma=tail.sigmas[steps],
            cond=rollout.cond.select(index),
            excerpt=excerpt,
        )
