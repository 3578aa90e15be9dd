"""Calibration of a judge: constants for z scores, reliability of its uncertainty, and a reference table.

Shapes: N clips, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from reward_model.dimensions import OVERALL, in_order
from reward_model.evaluation.benchmark import ProgressCallback, Readout, ScoringReward, pairs_by_label
from reward_model.evaluation.reference import DamageRow, ReferenceRow, reference_rows
from reward_model.evaluation.reliability import ChoiceCurve, SpreadCurve, choice_curve, spread_curve
from reward_model.evaluation.tables import format_rows, nulls
from reward_model.records import RatedClip, VideoPair

FloatArray = NDArray[np.float64]

NOT_COMPARED = "no comparator, or no two clips of one prompt whose overall labels differ enough"


@dataclass(frozen=True)
class Constants:
    """Mean and standard deviation of one dimension's quality over the `num` clips that have a score."""

    dimension: str
    num: int
    coverage: float
    mean: float
    std: float

    def units(self) -> dict[str, float]:
        """Return the constants of the units [0, 1] and 1 to 5; z scores have mean 0 and deviation 1 by them."""
        raw = {"raw_mean": 1 + 4 * self.mean, "raw_std": 4 * self.std}
        return {"unit_mean": self.mean, "unit_std": self.std, **raw}


@dataclass(frozen=True)
class Calibration:
    """Calibration of a judge on a set of clips.

    Attributes:
        constants: per dimension that has scores.
        reference: scores at quantiles with the labels that belong to them.
        reliability: dimension -> spread against error, where labels are known.
        comparator: probability against outcome, None where nothing was compared.
        damage: scores of known damage, for the embedded world.
    """

    constants: tuple[Constants, ...]
    reference: tuple[ReferenceRow, ...]
    reliability: Mapping[str, SpreadCurve]
    comparator: ChoiceCurve | None = None
    damage: tuple[DamageRow, ...] = ()

    def for_config(self) -> dict[str, dict[str, float]]:
        """Return the constants for the judge's configuration: dimension -> {"mean", "std"} of its quality."""
        return {row.dimension: {"mean": row.mean, "std": row.std} for row in self.constants}

    def to_json(self) -> dict[str, object]:
        """Return plain values, undefined ones as None."""
        return {
            "constants": [nulls(_constants_row(row)) for row in self.constants],
            "reference": [nulls(asdict(row)) for row in self.reference],
            "damage": [nulls(asdict(row)) for row in self.damage],
            "reliability": {name: _curve_json(curve) for name, curve in self.reliability.items()},
            "comparator": None if self.comparator is None else _curve_json(self.comparator),
        }

    def format(self) -> str:
        """Return all tables as text."""
        parts = ["Constants of the scores, by which z scores have mean 0 and deviation 1"]
        parts += [format_rows([_constants_row(row) for row in self.constants]), ""]
        parts += ["What a score means: scores at quantiles of these clips, and the mean label of the clips around them"]
        parts += [format_rows([asdict(row) for row in self.reference])]
        if self.damage:
            parts += ["", "What a score means: clips with one fault of known size"]
            parts += [format_rows([asdict(row) for row in self.damage])]
        for name, curve in self.reliability.items():
            parts += ["", f"Reliability of the spread of {name}: {_spread_summary(curve)}"]
            parts += [format_rows([asdict(row) for row in curve.bins])] if curve.bins else []
        parts += ["", f"Reliability of the comparator: {_choice_summary(self.comparator)}"]
        if self.comparator is not None and self.comparator.bins:
            parts += [format_rows([asdict(row) for row in self.comparator.bins])]
        return "\n".join(parts)


def calibrate(
    judge: ScoringReward,
    rated_clips: Sequence[RatedClip],
    *,
    comparator: ScoringReward | None = None,
    readout: Readout = "level",
    num_pairs: int = 500,
    min_gap: float = 0.1,
    num_bins: int = 10,
    batch_size: int = 16,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Calibration:
    """Calibrate a judge on a set of clips.

    Args:
        judge: reward that scores.
        rated_clips: the clips; labels in [0, 1] serve reliability and reference, and may be missing.
        comparator: reward that compares; None leaves comparisons out.
        readout: readout of the scores; a single greedy answer has no spread.
        num_pairs: most pairs to compare, sampled from those of one prompt.
        min_gap: smallest difference of overall labels of a pair.
        num_bins: bins of each curve.
        batch_size: clips or pairs per call.
        seed: of the choice of pairs.
        progress: told after each call.

    Returns:
        The calibration; the judge stays unchanged.

    Raises:
        ValueError: no clips, or a dimension whose scores are all the same.
    """
    if not rated_clips:
        raise ValueError("there are no clips to calibrate on")
    pairs = pairs_by_label(rated_clips, min_gap=min_gap, num=num_pairs, seed=seed) if comparator else []
    total = len(rated_clips) + len(pairs)
    scores, spreads = _read(judge, rated_clips, readout, batch_size, progress, total)
    constants, reference, reliability = [], list[ReferenceRow](), {}
    for name in in_order(scores):
        labels = np.array([clip.quality.get(name, math.nan) for clip in rated_clips])
        known = scores[name][np.isfinite(scores[name])]
        if len(known) < 2:
            continue
        if np.ptp(known) == 0:
            raise ValueError(f"all {len(known)} scores of {name} are {known[0]:g}; z scores need clips that differ")
        std = float(known.std(ddof=1))
        constants.append(Constants(name, len(known), len(known) / len(rated_clips), float(known.mean()), std))
        reference += reference_rows(name, scores[name], labels)
        if np.isfinite(labels).any():
            reliability[name] = spread_curve(spreads[name], scores[name] - labels, num_bins=num_bins)
    if not constants:
        raise ValueError(f"none of the {len(rated_clips)} clips could be scored, or only one")
    curve = _choices(comparator, pairs, num_bins, batch_size, progress, total) if comparator and pairs else None
    return Calibration(tuple(constants), tuple(reference), reliability, curve)


def _read(
    judge: ScoringReward,
    clips: Sequence[RatedClip],
    readout: Readout,
    batch_size: int,
    progress: ProgressCallback | None,
    total: int,
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Return dimension -> [N] scores and spreads, NaN where there is none."""
    scores: dict[str, list[float]] = {}
    spreads: dict[str, list[float]] = {}
    for start in range(0, len(clips), batch_size):
        batch = clips[start : start + batch_size]
        output = judge([clip.video for clip in batch], [clip.prompt for clip in batch], readout=readout)
        for name, values in output.scores.items():
            scores.setdefault(name, []).extend(values.tolist())
            spreads.setdefault(name, []).extend(output.std[name].tolist())
        if progress:
            progress(start + len(batch), total)
    return {k: np.array(v) for k, v in scores.items()}, {k: np.array(v) for k, v in spreads.items()}


def _choices(
    comparator: ScoringReward,
    pairs: Sequence[VideoPair],
    num_bins: int,
    batch_size: int,
    progress: ProgressCallback | None,
    total: int,
) -> ChoiceCurve:
    """Return the curve of P(first is better | one is better), as no labelled pair is a tie."""
    stated: list[float] = []
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        output = comparator.compare(
            [p.first for p in batch], [p.second for p in batch], [p.prompt for p in batch], swap=True
        )
        stated += (output.p_first / (1 - output.p_tie)).tolist()
        if progress:
            progress(total - len(pairs) + start + len(batch), total)
    return choice_curve(stated, [pair.preference[OVERALL] for pair in pairs], num_bins=num_bins)


def _constants_row(row: Constants) -> dict[str, object]:
    return {"dimension": row.dimension, "num": row.num, "coverage": row.coverage, **row.units()}


def _curve_json(curve: SpreadCurve | ChoiceCurve) -> dict[str, object]:
    values = asdict(curve)
    return nulls(values) | {"bins": [nulls(row) for row in values["bins"]]}


def _spread_summary(curve: SpreadCurve) -> str:
    if not curve.bins:
        return "no clip has a label, a score and a spread"
    return (
        f"calibration error {curve.calibration_error:.3f}, errors are {curve.scale:.2f} times the spread, "
        f"srcc with the absolute error {curve.srcc:.3f}"
    )


def _choice_summary(curve: ChoiceCurve | None) -> str:
    if curve is None or not curve.bins:
        return NOT_COMPARED if curve is None else "none of the pairs could be compared"
    return (
        f"{curve.num} pairs, coverage {curve.coverage:.3f}, accuracy {curve.accuracy:.3f}, "
        f"calibration error {curve.calibration_error:.3f}"
    )
