"""Training range of a judge: bounds of frame rate, number of frames and frame size, and the check of clips against them.

All three describe the planned clip: the rate of its frames, their number, and the pixels of each before the judge's own
resize.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reward_model.records import CLIP_MEASURES, Clip

Range = Mapping[str, Sequence[float]]
"""Name of `CLIP_MEASURES` -> [lowest, highest]."""

SLACK = 0.02
"""Tolerance outside the range, as a share of the bound: containers round time stamps."""

WORDS = {"fps": "judged frames a second", "frames": "judged frames", "pixels": "pixels a frame"}


def measure(clip: Clip) -> dict[str, float]:
    """Return each of `CLIP_MEASURES` of a clip."""
    height, width = clip.source_size or clip.frames.shape[-2:]
    values = (clip.plan.fps, len(clip.plan.indices), height * width)
    return dict(zip(CLIP_MEASURES, values, strict=True))


def unlike_training(clip: Clip, trained: Range) -> tuple[str, ...]:
    """List the properties of a clip that lie outside the judge's training range.

    Args:
        clip: planned clip.
        trained: the judge's range; a measure that it does not name is not checked.

    Returns:
        One phrase for each measure that is out of range.
    """
    outside = []
    for name, value in measure(clip).items():
        low, high = trained.get(name, (value, value))
        if not low * (1 - SLACK) <= value <= high * (1 + SLACK):
            known = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            outside.append(f"{value:.4g} {WORDS[name]} (trained with {known})")
    return tuple(outside)


def widened(trained: Range, clip: Clip) -> dict[str, list[float]]:
    """Return the range widened to include a clip; a single frame has no rate and leaves the range unchanged."""
    if len(clip.plan.indices) < 2:
        return {name: list(bounds) for name, bounds in trained.items()}
    values = measure(clip)
    return {name: [min(v, *trained.get(name, (v,))), max(v, *trained.get(name, (v,)))] for name, v in values.items()}
