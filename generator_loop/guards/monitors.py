"""Cheap statistics of the samples that no reward sees.

Reward-hacked video drifts to plain grounds, washed or garish colour, stillness and sameness; each of these shows in one
number per iteration.

Shape legend: B = prompts x group size, G group size, T pixel frames.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from generator_loop.records import Rollout, Scored


@torch.no_grad()
def statistics(samples: Rollout, scored: Scored) -> dict[str, float]:
    """Return a few numbers that describe one iteration's samples.

    Args:
        samples: this process's groups.
        scored: their rewards.

    Returns:
        Mean reward, its deviation within groups, share of valid scores, mean of each score, and of the pixels:
        brightness, saturation (largest minus smallest channel), edges (mean absolute difference of neighbours), motion
        (mean absolute difference of consecutive frames), and group_spread (deviation of latents within a group).
    """
    frames, size = samples.frames, samples.group_size
    spread = rearrange(samples.latents, "(b g) ... -> b g ...", g=size).std(dim=1, correction=0)
    motion = (frames[:, 1:] - frames[:, :-1]).abs().mean() if frames.shape[1] > 1 else torch.tensor(0.0)
    numbers = {
        "reward": _mean(scored.rewards),
        "reward_group_std": _mean(rearrange(scored.rewards, "(b g) -> b g", g=size).std(dim=1, correction=0)),
        "valid_fraction": float(scored.valid.float().mean()),
        "brightness": float(frames.mean()),
        "saturation": float((frames.amax(2) - frames.amin(2)).mean()),
        "edges": float((frames[..., 1:] - frames[..., :-1]).abs().mean()),
        "motion": float(motion),
        "group_spread": float(spread.mean()),
    }
    if scored.disagreement is not None:
        numbers["disagreement"] = _mean(scored.disagreement)
    return numbers | {f"score_{name}": _mean(value) for name, value in scored.scores.items()}


def refuse_invalid(scored: Scored, *, max_fraction: float) -> None:
    """Stop the run when too many samples have no score.

    Args:
        scored: rewards of one iteration.
        max_fraction: share of missing rewards that passes.

    Raises:
        RuntimeError: more than `max_fraction` of the rewards are missing.
    """
    missing = 1 - float(scored.valid.float().mean())
    if missing > max_fraction:
        raise RuntimeError(
            f"{missing:.0%} of the samples have no score, more than reward.max_invalid_fraction={max_fraction}: "
            "look at the newest samples and at the judge's reasons"
        )


def _mean(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.mean()) if len(finite) else float("nan")
