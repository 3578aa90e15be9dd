"""Labelled clips that hold the judge in place: they accept or refuse a refresh and keep rewards on one scale.

Shape legend: A anchors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from generator_loop.config import AnchorConfig
from reward_model import read_manifest
from reward_model.records import DIMENSIONS, RatedClip

if TYPE_CHECKING:
    from reward_model.video_reward import VideoJudgeReward


MIN_ANCHOR_GAP = 0.1
"""Two anchors form a pair of the accuracy where their known qualities differ by this much."""


@dataclass(frozen=True)
class Anchors:
    """Labelled clips: `train` is mixed into each refresh, `held_out` accepts or refuses it."""

    train: tuple[RatedClip, ...]
    held_out: tuple[RatedClip, ...]


@dataclass(frozen=True)
class Affine:
    """Map of a judge's reward to the scale of the initial one: offset + slope x reward."""

    offset: float = 0.0
    slope: float = 1.0

    def __call__(self, reward: float) -> float:
        """Return the reward on the initial scale."""
        return self.offset + self.slope * reward


def anchor_scores(judge: VideoJudgeReward, clips: Sequence[RatedClip]) -> dict[str, Tensor]:
    """Return dimension -> the judge's scores [A] of labelled clips."""
    scores = judge([clip.video for clip in clips], [clip.prompt for clip in clips]).scores
    return {name: values.float().cpu() for name, values in scores.items()}


def anchor_accuracy(scores: Mapping[str, Tensor], clips: Sequence[RatedClip]) -> float:
    """Return the share of anchor pairs that scores order rightly, as a mean over the dimensions that are known.

    Args:
        scores: dimension -> [A], as `anchor_scores` returns them.
        clips: the A labelled clips.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: no two anchors differ enough to form a pair.
    """
    accuracies = []
    for name in DIMENSIONS:
        known = torch.tensor([clip.quality.get(name, math.nan) for clip in clips])
        if name not in scores:
            continue
        gap = known[:, None] - known[None]  # [A, A], positive where the row is better
        better = gap >= MIN_ANCHOR_GAP
        if bool(better.any()):
            margin = scores[name][:, None] - scores[name][None]
            accuracies.append(float((margin > 0)[better].float().mean()))
    if not accuracies:
        raise ValueError(f"the held-out anchors hold no two clips whose quality differs by {MIN_ANCHOR_GAP}")
    return sum(accuracies) / len(accuracies)


def reanchor(current: Tensor, initial: Tensor) -> Affine:
    """Return the least-squares map of the current judge's anchor rewards [A] to the initial judge's [A]."""
    both = current.isfinite() & initial.isfinite()
    x, y = current[both].double(), initial[both].double()
    variance = float(x.var(correction=0)) if len(x) else 0.0
    if variance == 0:
        return Affine()
    slope = float(((x - x.mean()) * (y - y.mean())).mean()) / variance
    return Affine(offset=float(y.mean()) - slope * float(x.mean()), slope=slope)


def read_anchors(settings: AnchorConfig) -> Anchors:
    """Read labelled clips from `refresh.anchors.path`, or render them in the moving-shapes world.

    Args:
        settings: where from and how many.

    Returns:
        The anchors.

    Raises:
        ValueError: The file lacks columns or clips, or a quality is outside its scale; the message names file and line.
    """
    wanted = settings.num_train + settings.num_held_out
    if settings.path is None:
        from reward_model import moving_shapes

        train = moving_shapes.sample_rated(settings.num_train, seed=_ANCHOR_SEED)
        return Anchors(tuple(train), tuple(moving_shapes.sample_rated(settings.num_held_out, seed=_ANCHOR_SEED + 1)))
    clips = read_manifest(settings.path, columns=settings.columns or None)
    if len(clips) < wanted:
        raise ValueError(f"{settings.path} holds {len(clips)} clips, refresh.anchors asks for {wanted}")
    return Anchors(tuple(clips[: settings.num_train]), tuple(clips[settings.num_train : wanted]))


_ANCHOR_SEED = 7_000_000
"""Far from the seeds on which judges are trained."""
