"""Preference pairs "the newest best clip beats an older loser of the same prompt".

Source: VQ-Insight (arXiv 2506.18564), stage 3, step 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from generator_loop.records import Prompt, Rollout, Scored
from reward_model.records import Video, VideoPair

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Loser:
    """The worst clip that an older policy drew for a prompt, as clean latents [c, F, h, w]."""

    prompt: Prompt
    latents: Tensor


def losers_of(rollout: Rollout, scored: Scored) -> list[Loser]:
    """Return each group's worst clip that has a score; a group without any has none."""
    size, found = rollout.group_size, []
    for index, prompt in enumerate(rollout.prompts):
        rows = slice(index * size, (index + 1) * size)
        worst = torch.where(scored.valid[rows], scored.rewards[rows], torch.inf)
        if bool(worst.isfinite().any()):
            found.append(Loser(prompt, rollout.latents[rows][int(worst.argmin())].clone()))
    return found


def winners_of(rollout: Rollout, scored: Scored) -> list[tuple[Prompt, Tensor]]:
    """Return each group's best clip [T, C, H, W] that has a score."""
    size, found = rollout.group_size, []
    for index, prompt in enumerate(rollout.prompts):
        rows = slice(index * size, (index + 1) * size)
        best = torch.where(scored.valid[rows], scored.rewards[rows], -torch.inf)
        if bool(best.isfinite().any()):
            found.append((prompt, rollout.frames[rows][int(best.argmax())]))
    return found


def new_beats_old(
    winners: Sequence[tuple[Prompt, Tensor]], losers: Sequence[tuple[Prompt, Tensor]], fps: float
) -> list[VideoPair]:
    """Return the pairs "the newest best clip beats the old loser of the same prompt".

    Args:
        winners: prompts and frames [T, C, H, W] of the newest policy's best clips.
        losers: prompts and frames of older losers.
        fps: frame rate of all clips.

    Returns:
        `VideoPair`s, one for each prompt that has both.
    """
    old = {prompt.prompt_id: frames for prompt, frames in losers}
    return [
        VideoPair(
            first=Video(frames=frames, fps=fps),
            second=Video(frames=old[prompt.prompt_id], fps=fps),
            prompt=prompt.text,
            preference={"overall": 1.0},
            source_id=f"prompt {prompt.prompt_id}",
        )
        for prompt, frames in winners
        if prompt.prompt_id in old
    ]
