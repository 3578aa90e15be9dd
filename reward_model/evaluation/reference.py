"""Reference tables of a judge's scores: labels at score quantiles, and scores of known damage.

Shapes: N clips.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from reward_model.evaluation.benchmark import ScoringReward, score_clips
from reward_model.media.distortions import SEVERITIES
from reward_model.records import RatedClip
from reward_model.toy_world import moving_shapes as world
from reward_model.toy_world.labels import TABLE

FloatArray = NDArray[np.float64]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

REACH = 0.05
"""Half width, in ranks, of the neighbourhood whose labels are averaged at a quantile."""


@dataclass(frozen=True)
class ReferenceRow:
    """The score at a quantile of one dimension in three units, and the mean label of the `num_labelled` clips around it."""

    dimension: str
    quantile: float
    unit: float
    raw: float
    z: float
    label: float
    num_labelled: int


@dataclass(frozen=True)
class DamageRow:
    """Scores of one dimension over clips of one known fault: mean, 10th and 90th percentile, and the mean label."""

    dimension: str
    fault: str
    num: int
    score: float
    p10: float
    p90: float
    label: float


def reference_rows(dimension: str, scores: FloatArray, labels: FloatArray) -> list[ReferenceRow]:
    """Return one table row for each quantile of the scores.

    Args:
        dimension: its name.
        scores: [N], at least two different ones; NaN where there is none.
        labels: [N], quality in [0, 1]; NaN where unknown.

    Returns:
        Rows, lowest quantile first.
    """
    present = np.isfinite(scores)
    order = np.argsort(scores[present], kind="stable")
    s, y = scores[present][order], labels[present][order]
    ranks = (np.arange(len(s)) + 0.5) / len(s)
    rows = []
    for quantile in QUANTILES:
        near = y[np.abs(ranks - quantile) <= REACH]
        near = near[np.isfinite(near)]
        value = float(np.quantile(s, quantile))
        rows.append(
            ReferenceRow(
                dimension=dimension,
                quantile=quantile,
                unit=value,
                raw=1 + 4 * value,
                z=float((value - s.mean()) / s.std(ddof=1)),
                label=float(near.mean()) if len(near) else float("nan"),
                num_labelled=len(near),
            )
        )
    return rows


def damage_rows(reward: ScoringReward, *, num: int, seed: int, batch_size: int = 16) -> tuple[DamageRow, ...]:
    """Score moving shapes with one fault of known size each: defects at five severities, and wrong attributes.

    Args:
        reward: reward that scores.
        num: clips of each row.
        seed: equal seeds give equal clips.
        batch_size: clips per call.

    Returns:
        Rows of visual and of motion quality by severity, and of text alignment by the number of wrong attributes.
    """
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    rows = []
    for dimension in ("visual_quality", "motion_quality"):
        defects = [name for name in world.CORE_DEFECTS if next(iter(TABLE[name])) == dimension]
        for severity, fault in enumerate(SEVERITIES):
            drawn = [{defects[i % len(defects)]: float(severity)} for i in range(num)]
            clips = [_make(rng, generator, damage, num_wrong=0) for damage in drawn]
            rows.append(_damage_row(reward, clips, dimension, fault, batch_size))
    for num_wrong, fault in enumerate(("as asked", "1 wrong", "2 wrong", "3 wrong")):
        clips = [_make(rng, generator, {}, num_wrong=num_wrong) for _ in range(num)]
        rows.append(_damage_row(reward, clips, "text_alignment", fault, batch_size))
    return tuple(rows)


def _make(rng: random.Random, generator: torch.Generator, damage: Mapping[str, float], *, num_wrong: int) -> RatedClip:
    pool = world.split(world.CORE)[1]
    asked = rng.choice(pool)
    shown = world.mismatch(asked, world.CORE.scenes(), rng, num=num_wrong) if num_wrong else asked
    return world.rate(world.render(shown, generator=generator), asked, shown, damage, generator, "known damage")


def _damage_row(
    reward: ScoringReward, clips: Sequence[RatedClip], dimension: str, fault: str, batch_size: int
) -> DamageRow:
    scores = score_clips(reward, clips, batch_size=batch_size)[0][dimension]
    scores = scores[np.isfinite(scores)]
    row = DamageRow(dimension, fault, len(scores), float("nan"), float("nan"), float("nan"), float("nan"))
    if not len(scores):
        return row
    low, high = (float(bound) for bound in np.quantile(scores, (0.1, 0.9)))
    label = float(np.mean([clip.quality[dimension] for clip in clips]))
    return replace(row, score=float(scores.mean()), p10=low, p90=high, label=label)
