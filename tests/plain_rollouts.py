"""Rollouts of plain clips whose brightness is the value of their latents, and scores by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from generator_loop.records import Conditioning, Prompt, Rollout, Scored

PROMPTS = (Prompt(7, "a red ring"), Prompt(3, "a blue cross"))


def drawn(brightness: Sequence[float]) -> Rollout:
    """Return a rollout of both prompts, the first half of the clips for the first."""
    values = torch.tensor(brightness).view(-1, 1, 1, 1, 1)
    return Rollout(
        prompts=PROMPTS,
        group_size=len(brightness) // 2,
        noise=values,
        latents=values.clone(),
        cond=Conditioning({}),
        frames=values.expand(-1, 3, 3, 4, 4),
    )


def scored(values: Sequence[float]) -> Scored:
    """Return scores; NaN marks a clip without one."""
    rewards = torch.tensor(values)
    return Scored(rewards=rewards, valid=rewards.isfinite(), scores={"overall": rewards})
