"""The judge learns from the generator's newest clips, and is put back if it forgets what it knew.

Each refresh pairs the newest best clip of a prompt with the loser that an older policy drew for it, mixes these pairs
with labelled anchors, and trains the level readout of the role that serves as reward. Accuracy on held-out anchors
decides whether the result is kept; an affine map on the same anchors brings the rewards of all rounds to one scale.

Shape legend: A anchors.

Source: VQ-Insight (arXiv 2506.18564), stage 3, step 6 and 7.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from generator_loop.config import AnchorSettings, RefreshSettings
from generator_loop.records import Prompt, Rollout, Scored
from reward_model.records import DIMENSIONS, RatedClip, Video, VideoPair

if TYPE_CHECKING:
    from reward_model.video_reward import VideoJudgeReward

MIN_ANCHOR_GAP = 0.1
"""Two anchors form a pair of the accuracy where their known qualities differ by this much."""


@dataclass(frozen=True)
class Loser:
    """The worst clip that an older policy drew for a prompt, as clean latents [c, F, h, w]."""

    prompt: Prompt
    latents: Tensor


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


def refresh(
    judge: VideoJudgeReward,
    pairs: Sequence[VideoPair],
    anchors: Anchors,
    settings: RefreshSettings,
    *,
    seed: int,
) -> dict[str, float]:
    """Train the judge's role on pairs and anchors; restore it if held-out anchor accuracy fell too far.

    Args:
        judge: the rewarding judge; its role's adapter changes in place.
        pairs: new clips against old ones.
        anchors: labelled clips.
        settings: steps, rates and the accuracy that may be lost.
        seed: of the draws.

    Returns:
        `kept` (0 or 1), `accuracy_before`, `accuracy_after` and the training's metrics.
    """
    from reward_model.training.methods.refresh import refresh_levels

    assert judge.role is not None, "a refresh trains an adapter"
    saved = adapter_tensors(judge)
    before = anchor_accuracy(anchor_scores(judge, anchors.held_out), anchors.held_out)
    metrics = refresh_levels(
        judge.judge,
        role=judge.role,
        pairs=pairs,
        anchors=anchors.train,
        num_steps=settings.num_steps,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        seed=seed,
    )
    judge.judge.requires_grad_(False)
    after = anchor_accuracy(anchor_scores(judge, anchors.held_out), anchors.held_out)
    kept = after >= before - settings.max_accuracy_loss
    if not kept:
        load_adapter_tensors(judge, saved)
    metrics = {f"judge_{name}": value for name, value in metrics.items() if name not in ("step", "seconds")}
    return {**metrics, "accuracy_before": before, "accuracy_after": after, "kept": float(kept)}


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


def adapter_tensors(judge: VideoJudgeReward) -> dict[str, Tensor]:
    """Return copies of the role's weights, numbered in the judge's own order."""
    parameters = judge.judge.trainable_parameters(judge.role)
    judge.judge.requires_grad_(False)
    return {f"{place:04d}": parameter.detach().clone() for place, parameter in enumerate(parameters)}


@torch.no_grad()
def load_adapter_tensors(judge: VideoJudgeReward, tensors: dict[str, Tensor]) -> None:
    """Put back what `adapter_tensors` returned.

    Args:
        judge: the judge whose role is restored.
        tensors: number to tensor.

    Raises:
        ValueError: the tensors belong to another adapter.
    """
    parameters = judge.judge.trainable_parameters(judge.role)
    judge.judge.requires_grad_(False)
    if [tuple(p.shape) for p in parameters] != [tuple(tensors[name].shape) for name in sorted(tensors)]:
        raise ValueError(f"the stored judge adapter does not fit role {judge.role!r}; was the judge's folder changed?")
    for parameter, name in zip(parameters, sorted(tensors), strict=True):
        parameter.copy_(tensors[name])


def read_anchors(settings: AnchorSettings) -> Anchors:
    """Read labelled clips from `refresh.anchors.path`, or render them in the moving-shapes world.

    Args:
        settings: where from and how many.

    Returns:
        The anchors.

    Raises:
        ValueError: the file lacks columns or rows, or a quality is not in [0, 1].
    """
    wanted = settings.num_train + settings.num_held_out
    if settings.path is None:
        from reward_model import moving_shapes

        train = moving_shapes.sample_rated(settings.num_train, seed=_ANCHOR_SEED)
        return Anchors(tuple(train), tuple(moving_shapes.sample_rated(settings.num_held_out, seed=_ANCHOR_SEED + 1)))
    clips = _read_rated(Path(settings.path))
    if len(clips) < wanted:
        raise ValueError(f"{settings.path} holds {len(clips)} clips, refresh.anchors asks for {wanted}")
    return Anchors(tuple(clips[: settings.num_train]), tuple(clips[settings.num_train : wanted]))


_ANCHOR_SEED = 7_000_000
"""Far from the seeds on which judges are trained."""


def _read_rated(path: Path) -> list[RatedClip]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "video" not in rows[0] or not set(DIMENSIONS) & set(rows[0]):
        raise ValueError(f"{path} needs a column video and at least one of {', '.join(DIMENSIONS)}")
    clips = []
    for number, row in enumerate(rows, start=2):
        quality = {name: float(row[name]) for name in DIMENSIONS if row.get(name)}
        if not all(0 <= value <= 1 for value in quality.values()):
            raise ValueError(f"{path}, line {number}: quality must be in [0, 1], got {quality}")
        video = path.parent / row["video"]
        clips.append(RatedClip(video=video, prompt=row.get("prompt") or None, quality=quality, source_id=str(video)))
    return clips
