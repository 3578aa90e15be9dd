"""Tripwires against reward hacking: cheap statistics of the samples that no reward sees.

Reward-hacked video drifts to plain grounds, washed or garish colour, stillness and sameness; each of these shows in one
number per iteration. Crossing a limit is reported, not corrected.

Shape legend: B = prompts x group size, G group size, T pixel frames.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from generator_loop.records import Rollout, Scored

LIMITS = {"motion": (0.4, 3.0), "edges": (0.4, 3.0), "saturation": (0.5, 2.0), "group_spread": (0.4, 2.5)}
"""Statistic -> lowest and highest factor of its first value that passes without an alarm."""


@torch.no_grad()
def statistics(rollout: Rollout, scored: Scored) -> dict[str, float]:
    """Return what a rollout looks like in a few numbers.

    Args:
        rollout: samples of one iteration.
        scored: their rewards.

    Returns:
        Mean reward, its deviation within groups, share of valid scores, mean of each score, and of the pixels:
        brightness, saturation (largest minus smallest channel), edges (mean absolute difference of neighbours), motion
        (mean absolute difference of consecutive frames), and group_spread (deviation of latents within a group).
    """
    frames, size = rollout.frames, rollout.group_size
    spread = rollout.latents.unflatten(0, (-1, size)).std(dim=1, correction=0)  # [B / G, ...]
    motion = (frames[:, 1:] - frames[:, :-1]).abs().mean() if frames.shape[1] > 1 else torch.tensor(0.0)
    found = {
        "reward": _mean(scored.rewards),
        "reward_group_std": _mean(scored.rewards.unflatten(0, (-1, size)).std(dim=1, correction=0)),
        "valid_fraction": float(scored.valid.float().mean()),
        "brightness": float(frames.mean()),
        "saturation": float((frames.amax(2) - frames.amin(2)).mean()),
        "edges": float((frames[..., 1:] - frames[..., :-1]).abs().mean()),
        "motion": float(motion),
        "group_spread": float(spread.mean()),
    }
    if scored.disagreement is not None:
        found["disagreement"] = _mean(scored.disagreement)
    return found | {f"score_{name}": _mean(value) for name, value in scored.scores.items()}


def alarms(now: Mapping[str, float], first: Mapping[str, float]) -> tuple[str, ...]:
    """Return a sentence for each statistic that left its limits.

    Args:
        now: statistics of this iteration.
        first: statistics of the run's first iteration.

    Returns:
        Sentences, none where all is well.
    """
    found = []
    for name, (low, high) in LIMITS.items():
        if first[name] > 0 and not low * first[name] <= now[name] <= high * first[name]:
            found.append(
                f"{name} is {now[name]:.3g}, {now[name] / first[name]:.2f} of its first value: look at the samples"
            )
    return tuple(found)


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
