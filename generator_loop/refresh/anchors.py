"""Labelled clips that hold the judge in place: they accept or refuse a refresh and keep rewards on one scale.

Shape legend: A anchors.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from generator_loop.config import AnchorConfig
from reward_model import read_manifest
from reward_model.files import write_beside
from reward_model.records import DIMENSIONS, RatedClip

if TYPE_CHECKING:
    from reward_model.video_reward import VideoJudgeReward


log = logging.getLogger(__name__)

MAX_UNREADABLE = 0.2
"""Share of the anchors that were looked at of which no more may be unreadable or unusable."""

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


def read_anchors(
    settings: AnchorConfig,
    *,
    clips_per_prompt: int = 1,
    reason_of: Callable[[RatedClip], str] = lambda clip: "",
    quarantine: Path | None = None,
) -> Anchors:
    """Read labelled clips from `refresh.anchors.path`, or render them in the moving-shapes world.

    Args:
        settings: where from and how many.
        clips_per_prompt: rendered clips of one prompt that stand together, 2 for a comparator.
        reason_of: returns why the judge cannot use a clip, nothing where it can.
        quarantine: file that receives the lines and clips that cannot be used, which are left out.

    Returns:
        The anchors: the first clips of the file that can be used.

    Raises:
        ValueError: The file lacks columns or clips, or more than `MAX_UNREADABLE` of those looked at cannot be used; the
            message names file and line.
    """
    wanted = settings.num_train + settings.num_held_out
    if settings.path is None:
        from reward_model import moving_shapes

        sizes = (settings.num_train, settings.num_held_out)
        parts = [
            moving_shapes.sample_rated(num, seed=_ANCHOR_SEED + part, group_size=clips_per_prompt)
            for part, num in enumerate(sizes)
        ]
        return Anchors(tuple(parts[0]), tuple(parts[1]))
    clips, bad = _usable(settings, wanted, reason_of)
    if bad and quarantine is not None:
        lines = (dict(zip(("file", "manifest", "line", "reason"), one, strict=True)) for one in bad)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_beside(quarantine, lambda beside: beside.write_text(text, encoding="utf-8"), many_writers=True)
    for file, manifest, line, reason in bad:
        log.warning("anchor left out: %s, line %d: %s: %s", manifest, line, file, reason)
    if len(bad) > MAX_UNREADABLE * (len(bad) + len(clips)):
        _, manifest, line, reason = bad[0]
        raise ValueError(
            f"{len(bad)} of {len(bad) + len(clips)} anchors cannot be used, more than {MAX_UNREADABLE:.0%}; "
            f"the first is {manifest}, line {line}: {reason}"
        )
    if len(clips) < wanted:
        raise ValueError(f"{settings.path} holds {len(clips)} clips, refresh.anchors asks for {wanted}")
    return Anchors(tuple(clips[: settings.num_train]), tuple(clips[settings.num_train : wanted]))


_Bad = tuple[str, str, int, str]
"""File, manifest, line and reason of an anchor that cannot be used."""


def _usable(
    settings: AnchorConfig, wanted: int, reason_of: Callable[[RatedClip], str]
) -> tuple[list[RatedClip], list[_Bad]]:
    """Return the first clips of the file that can be used, and what could not be on the way to them."""
    assert settings.path is not None
    faults: list[Any] = []
    clips = read_manifest(settings.path, columns=settings.columns or None, faults=faults)
    bad = [(fault.file, fault.manifest, fault.line, fault.reason) for fault in faults]
    good: list[RatedClip] = []
    for clip in clips:
        if len(good) == wanted:
            break
        if reason := "no rating" if not clip.quality else reason_of(clip):
            bad.append((str(clip.video), str(settings.path), int(clip.place.rpartition(" ")[2]), reason))
        else:
            good.append(clip)
    return good, bad


_ANCHOR_SEED = 7_000_000
"""Far from the seeds on which judges are trained."""
