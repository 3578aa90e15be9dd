"""Effect of damage and mismatch on quality: the one table from which all labels of the moving-shapes world come."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

FALL = (1.0, 0.8, 0.55, 0.3, 0.12)
"""Quality left at severities 0 to 4 in a dimension that a defect strikes."""

TABLE: dict[str, dict[str, tuple[float, ...]]] = {
    "downscale": {"visual_quality": FALL, "text_alignment": (1.0, 1.0, 0.97, 0.9, 0.78)},
    "blur": {"visual_quality": FALL, "text_alignment": (1.0, 1.0, 0.98, 0.87, 0.68)},
    "noise": {"visual_quality": (1.0, 0.86, 0.67, 0.43, 0.13), "motion_quality": (1.0, 1.0, 1.0, 0.98, 0.8)},
    "grain": {"visual_quality": FALL, "motion_quality": (1.0, 1.0, 1.0, 0.99, 0.9)},
    "darken": {"visual_quality": FALL},
    "brighten": {"visual_quality": FALL, "text_alignment": (1.0, 1.0, 1.0, 0.98, 0.84)},
    "h264": {
        "visual_quality": (1.0, 0.71, 0.55, 0.37, 0.22),
        "motion_quality": (1.0, 1.0, 0.99, 0.85, 0.6),
        "text_alignment": (1.0, 1.0, 1.0, 0.9, 0.7),
    },
    "h265": {
        "visual_quality": (1.0, 0.73, 0.63, 0.48, 0.3),
        "motion_quality": (1.0, 1.0, 0.96, 0.83, 0.53),
        "text_alignment": (1.0, 1.0, 1.0, 0.94, 0.7),
    },
    "flicker": {"motion_quality": FALL, "visual_quality": (1.0, 1.0, 1.0, 0.97, 0.9)},
    "jitter": {"motion_quality": FALL, "text_alignment": (1.0, 1.0, 0.99, 0.9, 0.82)},
    "stutter": {"motion_quality": FALL, "text_alignment": (1.0, 0.98, 0.98, 0.87, 0.65)},
    "freeze": {"motion_quality": FALL, "text_alignment": (1.0, 0.93, 0.6, 0.31, 0.18)},
    "shuffle": {"motion_quality": FALL, "text_alignment": (1.0, 1.0, 0.97, 0.9, 0.55)},
    "identity_drift": {
        "motion_quality": FALL,
        "visual_quality": (1.0, 0.97, 0.88, 0.92, 0.92),
        "text_alignment": (1.0, 0.71, 0.32, 0.3, 0.3),
    },
    "warp": {
        "motion_quality": FALL,
        "visual_quality": (1.0, 0.97, 0.87, 0.7, 0.52),
        "text_alignment": (1.0, 1.0, 0.99, 0.94, 0.68),
    },
}
"""Defect -> dimension -> quality left at severities 0 to 4; a dimension that is not named keeps all.

A defect strikes alignment where it hides what was asked for: a frozen shape shows no direction, a drifting one has no
one colour."""

WRONG = {"shape": 0.4, "colour": 0.3, "direction": 0.3, "speed": 0.6, "size": 0.65, "background": 0.75}
"""Attribute -> text alignment left where the clip shows another value than the caption asks for."""


def quality_left(defects: Mapping[str, float], wrong: Iterable[str]) -> dict[str, float]:
    """Return every dimension -> quality in [0, 1] that defects and wrong attributes leave; their factors multiply.

    Args:
        defects: name -> severity in [0, 4].
        wrong: attributes in which the clip differs from its caption.

    Returns:
        Dimension -> share of the quality that is left, in [0, 1].
    """
    quality = dict.fromkeys(("visual_quality", "motion_quality", "text_alignment"), 1.0)
    for name, severity in defects.items():
        for dimension, factors in TABLE[name].items():
            quality[dimension] *= _at(factors, severity)
    for name in wrong:
        quality["text_alignment"] *= WRONG[name]
    return quality | {"overall": overall(quality)}


def overall(quality: Mapping[str, float]) -> float:
    """Return the geometric mean of the three dimensions, pulled towards the worst of them.

    It is the root of worst times geometric mean: no dimension makes up for another that fails.
    """
    three = [quality[name] for name in ("visual_quality", "motion_quality", "text_alignment")]
    return math.sqrt(min(three) * math.prod(three) ** (1 / 3))


def _at(factors: Sequence[float], severity: float) -> float:
    low = min(int(severity), len(factors) - 2)
    return factors[low] + (severity - low) * (factors[low + 1] - factors[low])
