"""Preference pairs: the newest policy's best clip of a prompt beats the worst that an older policy drew for it.

Shape legend: c latent channels, F latent frames, h, w latent height and width, T pixel frames.

Source: VQ-Insight (arXiv 2506.18564), stage 3, step 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from generator_loop.records import Prompt, Rollout, Scored
from generator_loop.refresh.base import PairTools
from reward_model.records import Video, VideoPair


class NewBeatsOld:
    """Keeps each prompt's first rejected clip of a round, as clean latents, until the refresh chooses against it."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        """Start with no rejected clip.

        Args:
            prompts: training prompts, by which a restored state is read.
        """
        self._prompts = {prompt.prompt_id: prompt for prompt in prompts}
        self._rejected: dict[int, Tensor] = {}

    def observe(self, samples: Rollout, scored: Scored, tools: PairTools) -> None:
        """Keep the worst clip of every prompt that has none yet; see `PairSource.observe`."""
        for prompt_id, latents in tools.gather(rejected_of(samples, scored)):
            self._rejected.setdefault(prompt_id, latents)

    def pairs(self, tools: PairTools) -> list[VideoPair]:
        """Return one pair for each of the first `tools.num_prompts` prompts seen; see `PairSource.pairs`."""
        rejected = dict(list(self._rejected.items())[: tools.num_prompts])
        self._rejected = {}
        own = [self._prompts[prompt_id] for prompt_id in rejected][tools.rank :: tools.num_ranks]
        chosen = chosen_of(*tools.sample(own)) if own else []
        old = {prompt_id: tools.decode(latents[None])[0].cpu() for prompt_id, latents in rejected.items()}
        return [self._pair(prompt_id, frames, old[prompt_id], tools.fps) for prompt_id, frames in tools.gather(chosen)]

    def state(self) -> Mapping[str, Tensor]:
        """Return the rejected latents; names begin with their place, since the order decides which prompts are paired."""
        return {f"{place:06d}.{key}": latents for place, (key, latents) in enumerate(self._rejected.items())}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the tensors of `state`."""
        self._rejected = {int(name.partition(".")[2]): state[name] for name in sorted(state)}

    def _pair(self, prompt_id: int, chosen: Tensor, rejected: Tensor, fps: float) -> VideoPair:
        return VideoPair(
            first=Video(frames=chosen, fps=fps),
            second=Video(frames=rejected, fps=fps),
            prompt=self._prompts[prompt_id].text,
            preference={"overall": 1.0},
            source_id=f"prompt {prompt_id}",
        )


def rejected_of(samples: Rollout, scored: Scored) -> list[tuple[int, Tensor]]:
    """Return (prompt id, latents [c, F, h, w]) of each group's worst scored clip; a group without scores has none."""
    worst = _extremes(samples, torch.where(scored.valid, -scored.rewards, -torch.inf))
    return [(prompt_id, samples.latents[index].clone()) for prompt_id, index in worst]


def chosen_of(samples: Rollout, scored: Scored) -> list[tuple[int, Tensor]]:
    """Return (prompt id, frames [T, C, H, W]) of each group's best scored clip; a group without scores has none."""
    best = _extremes(samples, torch.where(scored.valid, scored.rewards, -torch.inf))
    return [(prompt_id, samples.frames[index]) for prompt_id, index in best]


def _extremes(samples: Rollout, values: Tensor) -> list[tuple[int, int]]:
    """Return (prompt id, index in the rollout) of the largest finite value of each group that has one."""
    finite = torch.where(values.isfinite(), values, -torch.inf)
    groups = finite.view(-1, samples.group_size)  # [prompts, G]
    return [
        (prompt.prompt_id, place * samples.group_size + int(group.argmax()))
        for place, (prompt, group) in enumerate(zip(samples.prompts, groups, strict=True))
        if bool(group.isfinite().any())
    ]
