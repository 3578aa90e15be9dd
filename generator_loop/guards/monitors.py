"""Cheap statistics of the samples that no reward sees.

Reward-hacked video drifts to plain grounds, washed or garish colour, stillness and sameness; each of these shows in one
number per iteration.

Shape legend: B = prompts x group size, G group size, T pixel frames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

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
        "reward_group_std": _mean(_group_std(rearrange(scored.rewards, "(b g) -> b g", g=size))),
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


class TooFewScoresError(RuntimeError):
    """So many samples of an iteration have no score that the run has ended; the message says why they have none."""


def refuse_invalid(
    scored: Scored, *, max_fraction: float, all_sum: Callable[[Tensor], Tensor] = lambda values: values
) -> None:
    """Stop the run when too many samples of all processes have no score.

    Args:
        scored: rewards of one iteration.
        max_fraction: share of missing rewards that passes.
        all_sum: sums a tensor over processes.

    Raises:
        TooFewScoresError: on all processes, if more than `max_fraction` of the rewards are missing.
    """
    num_valid, num = all_sum(torch.tensor([float(scored.valid.sum()), float(scored.valid.numel())])).tolist()
    missing = 1 - num_valid / num
    if missing > max_fraction:
        raise TooFewScoresError(
            f"{missing:.0%} of the samples have no score, more than reward.max_invalid_fraction={max_fraction}: "
            f"look at the newest samples. {commonest_reason(scored.reasons)}"
        )


def _group_std(groups: Tensor) -> Tensor:
    """Return each group's standard deviation over its finite values, NaN where there is none."""
    finite = groups.isfinite()
    count = finite.sum(1)
    mean = torch.where(finite, groups, 0.0).sum(1) / count
    return (torch.where(finite, groups - mean[:, None], 0.0).square().sum(1) / count).sqrt()


def commonest_reason(reasons: Sequence[str]) -> str:
    """Return the reason that most samples share, as a sentence."""
    counts = Counter(filter(None, reasons)).most_common(1)
    return f"The judge's most frequent reason: {counts[0][0]} ({counts[0][1]} samples)" if counts else ""


def _mean(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.mean()) if len(finite) else float("nan")
