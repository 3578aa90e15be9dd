"""DRaFT-K: push the reward's own gradient through decoder and sampler, holding one step's activations at a time.

The samples are drawn without gradient and the states of the last K steps are kept. The reward is differentiated down
to the clean latents; then each step, last first, is taken again and handed the gradient of its output. The result is
that of back-propagation through all K steps; peak memory is the larger of reward + decoder and one step.

Shape legend: B samples of a rollout, N of a micro-batch, K kept steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from generator_loop.flow.path import mean_square
from generator_loop.objectives.base import ObjectiveConfig, Policies, check_decoded, drawn_excerpt
from generator_loop.records import Conditioning, Draw, Prompt, Rollout, Scored, TailStates
from generator_loop.rewards.advantages import Advantages


@dataclass(frozen=True, kw_only=True)
class DraftConfig(ObjectiveConfig):
    """Config of DRaFT-K and DRTune."""

    differentiates = True

    name: Literal["draft"] = "draft"
    """Chooses this objective."""

    tail_span: float = 0.5
    """Sigma that the differentiated last steps cover, in (0, 1]; the smallest such K is taken.

    A span, not a count: the last Euler step alone is nearly empty. Measured on gradient norms: 0.5.
    """

    detach_input: bool = False
    """Drop the gradient through each step's input (DRTune): cheaper in variance, nearly the same direction."""

    kl_coef: float = 0.0
    """Weight of the mean squared velocity difference to the reference over the tail; 0 skips its forward passes."""

    decode_latent_frames: int | None = None
    """Consecutive latent frames that are decoded and judged, at a place drawn anew for each optimiser step; null decodes all.

    Fewer cost less memory and time, as frames after the excerpt are not decoded and those before it carry no gradient, but on
    LTX (and in part HunyuanVideo and CogVideoX), whose decoders mix frames. The judge sees a short excerpt, so that faults
    which need time to show are missed. VADER decodes one frame.
    """

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not 0 < self.tail_span <= 1:
            raise ValueError(f"objective.tail_span must be in (0, 1], got {self.tail_span}")
        if self.kl_coef < 0:
            raise ValueError(f"objective.kl_coef must be >= 0, got {self.kl_coef}")
        check_decoded(self.decode_latent_frames)


@dataclass(frozen=True)
class DraftBatch:
    """Clean `latents` [N, ...] and the tail [K, N, ...] that led to them; `excerpt` is the latent frames judged, None for all."""

    prompts: tuple[Prompt, ...]
    latents: Tensor
    tail: TailStates
    cond: Conditioning
    excerpt: range | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.latents)


class Draft:
    """DRaFT-K as an objective of the loop; one optimiser step a rollout, as its samples are then no longer its own."""

    config_class = DraftConfig
    metrics = ("loss", "reward", "gradient_norm", "valid", "kl")
    num_updates = 1
    random_steps = None

    def __init__(self, config: DraftConfig) -> None:
        """Keep the config.

        Args:
            config: of the objective.
        """
        self.config = config
        self.tail_span = config.tail_span

    def plan(
        self, rollout: Rollout, scored: Scored, advantages: Advantages, *, draw: Draw, micro_batch_size: int
    ) -> Iterator[Iterator[DraftBatch]]:
        """Yield one optimiser step over all usable samples; see `Objective.plan`."""
        samples = advantages.usable.nonzero().flatten().tolist()
        excerpt = drawn_excerpt(self.config.decode_latent_frames, rollout.latents, draw)
        yield _micro_batches(rollout, samples, excerpt, micro_batch_size)

    def backward(self, batch: DraftBatch, policies: Policies, *, scale: float) -> Mapping[str, float]:
        """Add the gradient of one micro-batch; see `Objective.backward`.

        `gradient_norm` is that of the reward at each sample's clean latents. A sample whose reward is unavailable
        here adds nothing and lowers `valid`.
        """
        latents = batch.latents.detach().requires_grad_(True)
        rewards = policies.reward(policies.frames(latents, batch.excerpt), batch.prompts)
        valid = rewards.isfinite()
        loss = -torch.where(valid, rewards, 0.0).mean()
        (gradient,) = torch.autograd.grad(loss, latents)
        kl = backward_through_tail(
            batch,
            gradient * scale,
            policies,
            kl_scale=self.config.kl_coef * scale,
            detach_input=self.config.detach_input,
        )
        reward = torch.where(valid, rewards, 0.0).detach().mean()
        return {
            "loss": float(loss.detach() + self.config.kl_coef * kl),
            "reward": float(reward),
            "gradient_norm": float(gradient.flatten(1).norm(dim=1).mean()) * len(batch),
            "valid": float(valid.float().mean()),
            "kl": float(kl),
        }


def backward_through_tail(
    batch: DraftBatch, gradient: Tensor, policies: Policies, *, kl_scale: float = 0.0, detach_input: bool = False
) -> Tensor:
    """Add to the policy the gradient of the last K steps, one step in memory at a time.

    Args:
        batch: the samples and their tails.
        gradient: dL/dx_0 [N, ...].
        policies: the policies.
        kl_scale: weight of the reference term, the mean over samples and steps of the mean squared velocity
            difference, with the reference's velocity held constant; 0 leaves it out.
        detach_input: drop the part that flows through each step's input.

    Returns:
        The reference term without its weight, 0 where it is left out.
    """
    sigmas, num_steps = batch.tail.sigmas, len(batch.tail.states)
    kl = torch.zeros((), device=gradient.device)
    for step in reversed(range(num_steps)):
        state = batch.tail.states[step].detach().requires_grad_(not detach_input)
        sigma = sigmas[step].expand(len(state))
        velocity = policies.policy(state, sigma, batch.cond)
        upstream = (sigmas[step + 1] - sigmas[step]) * gradient
        if kl_scale > 0:
            away = velocity.detach() - policies.reference(state.detach(), sigma, batch.cond)
            kl = kl + mean_square(away).mean() / num_steps
            upstream = upstream + kl_scale * 2 * away / (away.numel() * num_steps)
        velocity.backward(upstream)
        if state.grad is not None:
            gradient = gradient + state.grad
    return kl


def _micro_batches(
    rollout: Rollout, samples: Sequence[int], excerpt: range | None, micro_batch_size: int
) -> Iterator[DraftBatch]:
    assert rollout.tail is not None, "the rollout must be drawn with the objective's tail_span"
    for start in range(0, len(samples), micro_batch_size):
        micro_batch = samples[start : start + micro_batch_size]
        index = torch.tensor(micro_batch, device=rollout.latents.device)
        yield DraftBatch(
            prompts=tuple(rollout.prompts[sample // rollout.group_size] for sample in micro_batch),
            latents=rollout.latents[index],
            tail=TailStates(states=rollout.tail.states[:, index], sigmas=rollout.tail.sigmas),
            cond=rollout.cond.select(index),
            excerpt=excerpt,
        )
