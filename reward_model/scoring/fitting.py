"""Clips that a judge's family can take, told from the others before they share a batch.

A file may be whole and yet of a shape that the family refuses; only that clip goes without a score.
"""

from __future__ import annotations

from reward_model.judge.engine.batching import clip_grid
from reward_model.judge.families.base import VisionFamily
from reward_model.records import Clip, VideoError


def fitting(clip: Clip | str, family: VisionFamily) -> Clip | str:
    """Return a planned clip that the family can take, or the reason why it cannot be judged.

    Args:
        clip: planned clip, or the reason why it is unreadable.
        family: the judge's.

    Returns:
        The clip or a reason.
    """
    if isinstance(clip, str):
        return clip
    try:
        clip_grid(clip, family)
    except VideoError as error:
        return str(error)
    return clip
