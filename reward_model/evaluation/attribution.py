"""Agreement of the faults named in reasoned answers with the known faults of the clips, by F1.

Shapes: N clips.

Source: VQAThinker (arXiv 2508.06051) calls the task distortion attribution; the measure is micro-averaged F1 over (clip,
fault) pairs (Manning et al., Introduction to Information Retrieval, section 8.3).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from statistics import mean

from reward_model.dimensions import BY_NAME
from reward_model.evaluation.benchmark import ProgressCallback, ScoringReward
from reward_model.evaluation.tables import AttributionRow, AttributionTable
from reward_model.language.parsing import parse_faults, parse_reason
from reward_model.records import ParsedAnswer, RatedClip

Named = Mapping[str, AbstractSet[str]]
"""Dimension -> names of faults."""

RANDOM_SEED, NUM_SHUFFLES = 0, 20


def evaluate_attributions(
    reward: ScoringReward, clips: Sequence[RatedClip], *, batch_size: int = 16, progress: ProgressCallback | None = None
) -> AttributionTable:
    """Ask for reasoned answers and compare the faults that they name with the known ones.

    Args:
        reward: reward to evaluate.
        clips: with `facts["faults"]`, dimension -> names of faults, none for a clean clip.
        batch_size: clips per call.
        progress: told after each call.

    Returns:
        The table, dimensions in the fixed order. An answer that cannot be read names nothing and lowers the coverage.

    Raises:
        ValueError: no clips, or one without known faults.
    """
    if not clips:
        raise ValueError("there are no clips to evaluate")
    truth = [_known(clip) for clip in clips]
    said: list[Named | None] = []
    for start in range(0, len(clips), batch_size):
        batch = clips[start : start + batch_size]
        output = reward([clip.video for clip in batch], [clip.prompt for clip in batch], readout="reason")
        said += [_read(text) for text in output.texts or [""] * len(batch)]
        if progress:
            progress(start + len(batch), len(clips))
    coverage = sum(one is not None for one in said) / len(said)
    rows = []
    for dimension in BY_NAME:
        asked = [index for index, faults in enumerate(truth) if dimension in faults]
        known = [truth[index][dimension] for index in asked]
        named = [(said[index] or {}).get(dimension, set()) for index in asked]
        if asked:
            figures = (coverage, *label_f1(named, known), _random_f1(named, known))
            rows.append(AttributionRow(dimension, len(asked), *figures))
    return AttributionTable(tuple(rows))


def label_f1(named: Sequence[AbstractSet[str]], known: Sequence[AbstractSet[str]]) -> tuple[float, float, float]:
    """Return precision, recall and F1 of named labels, micro-averaged over N clips.

    Args:
        named: labels that were given to each clip.
        known: labels that each clip has.

    Returns:
        Each in [0, 1]; NaN where nothing was named (precision) or nothing is to name (recall), F1 where neither.
    """
    hits = sum(len(a & b) for a, b in zip(named, known, strict=True))
    num_named, num_known = sum(map(len, named)), sum(map(len, known))
    precision = hits / num_named if num_named else math.nan
    recall = hits / num_known if num_known else math.nan
    return precision, recall, 2 * hits / (num_named + num_known) if num_named + num_known else math.nan


def _random_f1(named: Sequence[AbstractSet[str]], known: Sequence[AbstractSet[str]]) -> float:
    """Return the mean F1 of the same answers in random order."""
    rng = random.Random(RANDOM_SEED)
    return mean(label_f1(rng.sample(named, len(named)), known)[2] for _ in range(NUM_SHUFFLES))


def _known(clip: RatedClip) -> Named:
    faults = clip.facts.get("faults")
    if not isinstance(faults, Mapping):
        raise ValueError(f"clip {clip.source_id} lacks facts['faults'], by which attributions are scored")
    return {name: set(names) for name, names in faults.items()}


def _read(text: str) -> Named | None:
    parsed = parse_reason(text)
    if not isinstance(parsed, ParsedAnswer):
        return None
    return {name: set(names) for name, names in parse_faults(parsed.reasoning).items()}
