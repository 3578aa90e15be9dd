"""Tables of agreement between a reward and rated clips or labelled pairs, with coverage and a random baseline.

An unavailable score lowers the coverage; it is left out of correlations and counts as wrong in pair accuracies.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from reward_model.dimensions import BY_NAME, OVERALL
from reward_model.evaluation import metrics
from reward_model.evaluation.tables import PairRow, PairTable, RatingRow, RatingTable
from reward_model.records import Comparison, RatedClip, RewardOutput, Video, VideoPair
from reward_model.toy_world import moving_shapes, oracle

FloatArray = NDArray[np.float64]
Readout = Literal["level", "reason"]
ProgressCallback = Callable[[int, int], None]
"""Called with the number of clips or pairs done and their total."""

RANDOM_SEED = 0


class ScoringReward(Protocol):
    """A reward that scores and compares videos, such as `VideoJudgeReward`."""

    def __call__(
        self, videos: Sequence[Any], prompts: Sequence[str | None], *, readout: Readout, num_samples: int = 1
    ) -> RewardOutput:
        """Score videos; `num_samples` is given for several reasoned answers only."""

    def compare(self, a: Sequence[Any], b: Sequence[Any], prompts: Sequence[str | None], *, swap: bool) -> Comparison:
        """Compare pairs of videos."""


def evaluate_ratings(
    reward: ScoringReward,
    clips: Sequence[RatedClip],
    *,
    readout: Readout = "level",
    num_samples: int = 1,
    min_gap: float = 0.05,
    batch_size: int = 16,
    progress: ProgressCallback | None = None,
) -> RatingTable:
    """Score rated clips and measure the agreement with their labels.

    Args:
        reward: reward to evaluate.
        clips: with quality in [0, 1] on some dimensions.
        readout: readout of the judge.
        num_samples: reasoned answers of each clip whose mean is the score; 1 is the greedy one.
        min_gap: smallest difference of quality, within a prompt, that makes a pair.
        batch_size: clips per call.
        progress: told after each call.

    Returns:
        The table, dimensions in the fixed order, those without a label left out.

    Raises:
        ValueError: if there are no clips.
    """
    scores, parse_rate = score_clips(
        reward, clips, readout=readout, num_samples=num_samples, batch_size=batch_size, progress=progress
    )
    rows = []
    for dimension in BY_NAME:
        labelled = [index for index, clip in enumerate(clips) if dimension in clip.quality]
        if labelled and dimension in scores:
            truth = np.array([clips[index].quality[dimension] for index in labelled])
            prompts = [clips[index].prompt for index in labelled]
            rows.append(_rating_row(dimension, scores[dimension][labelled], truth, prompts, min_gap))
    return RatingTable(tuple(rows), parse_rate)


def evaluate_pairs(
    reward: ScoringReward,
    pairs: Sequence[VideoPair],
    *,
    method: Literal["compare", "level", "reason"] = "compare",
    threshold: float = 0.0,
    batch_size: int = 16,
    progress: ProgressCallback | None = None,
) -> PairTable:
    """Measure the agreement of a reward's preferences with labels.

    Args:
        reward: reward to evaluate.
        pairs: with preference on some dimensions.
        method: compare both clips in both orders (overall only), or subtract their scores by a readout.
        threshold: |margin| at or below which a pair is called a tie, frozen on other data.
        batch_size: pairs per call.
        progress: told after each call.

    Returns:
        The table, dimensions in the fixed order, those without a label left out.

    Raises:
        ValueError: if there are no pairs.
    """
    if not pairs:
        raise ValueError("there are no pairs to evaluate")
    if method == "compare":
        margins, consistent = _compare(reward, pairs, batch_size, progress)
    else:
        clips = [
            RatedClip(video, pair.prompt, {}, pair.source_id) for pair in pairs for video in (pair.first, pair.second)
        ]
        scores, _ = score_clips(reward, clips, readout=method, batch_size=batch_size, progress=progress)
        margins = {dimension: values[0::2] - values[1::2] for dimension, values in scores.items()}
        consistent = math.nan
    rows = []
    for dimension in BY_NAME:
        labelled = [index for index, pair in enumerate(pairs) if dimension in pair.preference]
        if not labelled or dimension not in margins:
            continue
        label = np.array([pairs[index].preference[dimension] for index in labelled])
        margin = margins[dimension][labelled]
        chance = np.random.default_rng(RANDOM_SEED).uniform(-1, 1, len(label))
        best = metrics.oracle_threshold(margin, label)
        rows.append(
            PairRow(
                dimension=dimension,
                num_pairs=len(label),
                coverage=float(np.isfinite(margin).mean()),
                accuracy=metrics.pair_accuracy(margin, label),
                random_accuracy=metrics.pair_accuracy(chance, label),
                with_ties=metrics.pair_accuracy_with_ties(margin, label, threshold=threshold),
                oracle_accuracy=best.accuracy,
                oracle_threshold=best.threshold,
                random_oracle_accuracy=metrics.oracle_threshold(chance, label).accuracy,
                consistency=consistent,
            )
        )
    return PairTable(tuple(rows))


def score_clips(
    reward: ScoringReward,
    clips: Sequence[RatedClip],
    *,
    readout: Readout = "level",
    num_samples: int = 1,
    batch_size: int = 16,
    progress: ProgressCallback | None = None,
) -> tuple[dict[str, FloatArray], float]:
    """Score clips batch by batch.

    Args:
        reward: reward that scores.
        clips: their videos and prompts.
        readout: readout of the judge.
        num_samples: see `evaluate_ratings`.
        batch_size: clips per call.
        progress: told after each call.

    Returns:
        Dimension -> [N] quality, NaN where unavailable, and the parse rate (NaN for levels).

    Raises:
        ValueError: if there are no clips.
    """
    if not clips:
        raise ValueError("there are no clips to evaluate")
    scores: dict[str, list[float]] = {}
    num_answers = num_parsed = 0
    for start in range(0, len(clips), batch_size):
        batch = clips[start : start + batch_size]
        several = {"num_samples": num_samples} if num_samples > 1 else {}
        videos, prompts = [clip.video for clip in batch], [clip.prompt for clip in batch]
        output = reward(videos, prompts, readout=readout, **several)
        for dimension, values in output.scores.items():
            scores.setdefault(dimension, []).extend(values.detach().float().cpu().tolist())
        if output.texts is not None:
            read = [plan is not None for plan in output.frame_plan]
            parsed = [any(bool(flags[index]) for flags in output.valid.values()) for index in range(len(batch))]
            num_answers += sum(read)
            num_parsed += sum(ok and seen for ok, seen in zip(parsed, read, strict=True))
        if progress:
            progress(start + len(batch), len(clips))
    rate = num_parsed / num_answers if num_answers else math.nan
    return {dimension: np.array(values) for dimension, values in scores.items()}, rate


def moving_shapes_clips(num: int, *, seed: int, defects: Sequence[str] = moving_shapes.CORE_DEFECTS) -> list[RatedClip]:
    """Draw clips of attribute combinations held out from training, labelled by the oracle.

    Args:
        num: how many.
        seed: equal seeds give equal clips.
        defects: kinds of damage; the toy models were trained on the default ones.

    Returns:
        Rated clips with every dimension.
    """
    held_out = moving_shapes.split(moving_shapes.CORE)[1]
    drawn = moving_shapes.sample_rated(num, seed=seed, scenes=held_out, defects=defects)
    clips = []
    for clip in drawn:
        assert isinstance(clip.video, Video) and clip.prompt is not None
        quality = oracle.score(clip.video.frames, clip.prompt)
        clips.append(RatedClip(clip.video, clip.prompt, quality, clip.source_id, clip.facts))
    return clips


def pairs_by_label(clips: Sequence[RatedClip], *, min_gap: float, num: int, seed: int) -> list[VideoPair]:
    """Make pairs of one prompt whose overall quality differs clearly, the better one first or second by chance.

    Args:
        clips: rated on overall.
        min_gap: smallest difference of overall quality.
        num: most pairs, chosen at random.
        seed: of the choice and order.

    Returns:
        At most `num` pairs labelled on overall.
    """
    quality = [clip.quality.get(OVERALL, math.nan) for clip in clips]
    better, worse = metrics.pairs_within_groups(quality, [clip.prompt for clip in clips], min_gap=min_gap)
    rng = random.Random(seed)
    pairs = []
    for index in rng.sample(range(len(better)), min(num, len(better))):
        first, second, label = clips[better[index]], clips[worse[index]], 1.0
        if rng.random() < 0.5:
            first, second, label = second, first, 0.0
        name = f"{first.source_id}|{second.source_id}"
        pairs.append(VideoPair(first.video, second.video, first.prompt, {OVERALL: label}, name))
    return pairs


def _rating_row(
    dimension: str, scores: FloatArray, truth: FloatArray, prompts: Sequence[str | None], min_gap: float
) -> RatingRow:
    both = metrics.drop_missing(scores, truth)
    groups = [prompt for prompt, keep in zip(prompts, both.keep, strict=True) if keep]
    if len(both.target) > 1:
        srcc = metrics.bootstrap_interval(
            metrics.srcc, both.prediction, both.target, groups=groups if len(set(groups)) > 1 else None
        )
    else:
        srcc = metrics.Interval(math.nan, math.nan, math.nan, 0, 0)
    named = [index for index, prompt in enumerate(prompts) if prompt is not None]
    better, worse = metrics.pairs_within_groups(truth[named], [prompts[index] for index in named], min_gap=min_gap)
    margin, always = (scores[named][better] - scores[named][worse]), np.ones(len(better))
    chance = np.random.default_rng(RANDOM_SEED).uniform(size=len(named))
    return RatingRow(
        dimension=dimension,
        num_clips=len(truth),
        coverage=float(both.keep.mean()),
        srcc=srcc.value,
        srcc_low=srcc.low,
        srcc_high=srcc.high,
        krcc=metrics.krcc(both.prediction, both.target),
        plcc=metrics.plcc(both.prediction, both.target),
        plcc_logistic=metrics.plcc_logistic(both.prediction, both.target),
        rmse=metrics.rmse(both.prediction, both.target),
        num_pairs=len(better),
        pair_accuracy=metrics.pair_accuracy(margin, always),
        pair_random=metrics.pair_accuracy(chance[better] - chance[worse], always),
    )


def _compare(
    reward: ScoringReward, pairs: Sequence[VideoPair], batch_size: int, progress: ProgressCallback | None
) -> tuple[dict[str, FloatArray], float]:
    """Return overall -> [N] margins and the share of pairs with one winner in both orders."""
    margins: list[float] = []
    consistent: list[bool] = []
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        output = reward.compare(
            [p.first for p in batch], [p.second for p in batch], [p.prompt for p in batch], swap=True
        )
        valid = output.valid.tolist()
        margins += [m if ok else math.nan for m, ok in zip(output.margin.tolist(), valid, strict=True)]
        consistent += [c for c, ok in zip(output.consistent.tolist(), valid, strict=True) if ok]
        if progress:
            progress(start + len(batch), len(pairs))
    return {OVERALL: np.array(margins)}, float(np.mean(consistent)) if consistent else math.nan
