"""The judge learns from the generator's newest clips, and is put back if it forgets what it knew.

Each refresh pairs the newest best clip of a prompt with the loser that an older policy drew for it, mixes these pairs
with labelled anchors, and trains the level readout of the role that serves as reward. Accuracy on held-out anchors
decides whether the result is kept; an affine map on the same anchors brings the rewards of all rounds to one scale.

Shape legend: A anchors.

Source: VQ-Insight (arXiv 2506.18564), stage 3, step 6 and 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from generator_loop.config import RefreshSettings
from generator_loop.refresh.anchors import Anchors, anchor_accuracy, anchor_scores
from reward_model.records import VideoPair

if TYPE_CHECKING:
    from reward_model.video_reward import VideoJudgeReward


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


def adapter_tensors(judge: VideoJudgeReward) -> dict[str, Tensor]:
    """Return copies of the role's weights, numbered in the judge's own order; the judge stays as it is."""
    parameters = judge.judge.role_parameters(judge.role)
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
    parameters = judge.judge.role_parameters(judge.role)
    if [tuple(p.shape) for p in parameters] != [tuple(tensors[name].shape) for name in sorted(tensors)]:
        raise ValueError(f"the stored judge adapter does not fit role {judge.role!r}; was the judge's folder changed?")
    for parameter, name in zip(parameters, sorted(tensors), strict=True):
        parameter.copy_(tensors[name])
