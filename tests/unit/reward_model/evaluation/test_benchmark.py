"""Benchmark tables with a judge whose scores are known."""

import math

import numpy as np
import pytest
import torch

from reward_model.evaluation import benchmark, metrics, tables
from reward_model.records import RatedClip, Video, VideoPair
from tests.fake_judge import FakeJudge


def clip(level, prompt, **quality):
    video = Video(torch.full((2, 3, 4, 4), level), fps=8.0)
    return RatedClip(video, prompt, quality, source_id=str(level))


def test_table_has_the_worked_out_figures():
    # Within "x": .2 .5 .6 for labels 0 .5 .4: pairs (b, a) and (c, a) right, (b, c) wrong. "y" has one clip.
    clips = [
        clip(0.2, "x", overall=0.0),
        clip(0.5, "x", overall=0.5),
        clip(0.6, "x", overall=0.4),
        clip(0.9, "y", overall=1.0),
    ]
    table = benchmark.evaluate_ratings(FakeJudge(), clips, min_gap=0.05, batch_size=3)
    (row,) = table.rows
    assert (row.dimension, row.num_clips, row.coverage) == ("overall", 4, 1.0)
    assert row.srcc == pytest.approx(1 - 6 * 2 / (4 * 15))  # ranks 1 2 3 4 against 1 3 2 4
    assert row.rmse == pytest.approx(math.sqrt((0.04 + 0 + 0.04 + 0.01) / 4), abs=1e-6)
    assert (row.num_pairs, row.pair_accuracy) == (3, pytest.approx(2 / 3))
    assert math.isnan(table.parse_rate)


def test_pairs_closer_than_the_gap_do_not_count():
    clips = [clip(0.2, "x", overall=0.5), clip(0.5, "x", overall=0.53)]
    (row,) = benchmark.evaluate_ratings(FakeJudge(), clips, min_gap=0.05).rows
    assert row.num_pairs == 0
    assert math.isnan(row.pair_accuracy)


def test_missing_scores_lower_coverage_and_lose_their_pairs():
    clips = [
        RatedClip("gone.mp4", "x", {"overall": 1.0}, "gone"),
        *(clip(level, "x", overall=level) for level in (0.1, 0.4, 0.8)),
    ]
    (row,) = benchmark.evaluate_ratings(FakeJudge(), clips).rows
    assert row.coverage == 0.75
    assert row.srcc == pytest.approx(1.0)
    assert row.pair_accuracy == pytest.approx(3 / 6)


def test_text_alignment_without_a_prompt_is_not_covered():
    clips = [clip(0.1, None, text_alignment=0.1), clip(0.5, "x", text_alignment=0.5)]
    (row,) = benchmark.evaluate_ratings(FakeJudge(), clips).rows
    assert (row.dimension, row.coverage) == ("text_alignment", 0.5)


def test_reasoned_answers_have_a_parse_rate_over_readable_clips():
    clips = [clip(0.1, "x", overall=0.1), RatedClip("gone.mp4", "x", {"overall": 1.0}, "gone")]
    assert benchmark.evaluate_ratings(FakeJudge(), clips, readout="reason").parse_rate == 1.0


def test_random_row_is_near_a_half_on_many_pairs():
    clips = [clip(level, "x", overall=level) for level in torch.linspace(0, 1, 60).tolist()]
    (row,) = benchmark.evaluate_ratings(FakeJudge(), clips).rows
    assert row.pair_accuracy == 1.0
    # 60 random scores: the standard error of the share of pairs in order is about 0.04.
    assert row.pair_random == pytest.approx(0.5, abs=0.15)


def test_pairs_are_read_by_comparison_or_by_scores():
    def pair(first, second, label):
        videos = (clip(level, "x").video for level in (first, second))
        return VideoPair(*videos, "x", {"overall": label, "visual_quality": label}, "p")

    pairs = [pair(0.9, 0.1, 1.0), pair(0.2, 0.8, 0.0), pair(0.3, 0.2, 0.0), pair(0.50, 0.52, 0.5)]
    (row,) = benchmark.evaluate_pairs(FakeJudge(), pairs, method="compare", threshold=0.05).rows
    assert (row.num_pairs, row.coverage, row.consistency) == (4, 1.0, 1.0)
    assert row.accuracy == pytest.approx(2 / 3)
    assert row.with_ties == pytest.approx(3 / 4)
    assert row.oracle_accuracy == pytest.approx(3 / 4)
    rows = benchmark.evaluate_pairs(FakeJudge(), pairs, method="level").rows
    assert [row.dimension for row in rows] == ["visual_quality", "overall"]
    assert [row.accuracy for row in rows] == pytest.approx([2 / 3, 2 / 3])


def test_empty_inputs_are_refused():
    with pytest.raises(ValueError, match="no clips"):
        benchmark.evaluate_ratings(FakeJudge(), [])
    with pytest.raises(ValueError, match="no pairs"):
        benchmark.evaluate_pairs(FakeJudge(), [])


def test_pairs_by_label_put_the_better_clip_on_either_side():
    clips = [clip(level, "x", overall=level) for level in np.linspace(0, 1, 12).tolist()]
    pairs = benchmark.pairs_by_label(clips, min_gap=0.3, num=30, seed=0)
    labels = [pair.preference["overall"] for pair in pairs]
    assert len(pairs) == 30
    assert {0.0, 1.0} == set(labels)
    (row,) = benchmark.evaluate_pairs(FakeJudge(), pairs).rows
    assert row.accuracy == 1.0
    assert pairs == benchmark.pairs_by_label(clips, min_gap=0.3, num=30, seed=0)


def test_world_clips_are_held_out_and_labelled_by_the_oracle():
    from reward_model.toy_world import moving_shapes, oracle

    clips = benchmark.moving_shapes_clips(3, seed=5)
    held_out = {moving_shapes.caption(scene) for scene in moving_shapes.split(moving_shapes.CORE)[1]}
    for item in clips:
        assert item.prompt in held_out
        assert item.quality == oracle.score(item.video.frames, item.prompt)


def test_tables_are_aligned_and_undefined_values_are_dashes():
    table = benchmark.evaluate_ratings(FakeJudge(), [clip(0.5, "x", overall=0.5)])
    header, line = tables.format_table(table).splitlines()
    assert len(header) == len(line)
    assert line.split()[:4] == ["overall", "1", "1.000", "-"]
    assert tables.to_json(table)["rows"][0]["srcc"] is None
    assert tables.to_json(table)["parse_rate"] is None


def test_metrics_of_the_table_equal_the_metrics_alone():
    rng = np.random.default_rng(0)
    levels, labels = rng.uniform(size=20), rng.uniform(size=20)
    clips = [clip(level, "x", overall=label) for level, label in zip(levels, labels, strict=True)]
    (row,) = benchmark.evaluate_ratings(FakeJudge(), clips).rows
    assert row.krcc == pytest.approx(metrics.krcc(levels, labels))
    assert row.plcc == pytest.approx(metrics.plcc(levels, labels), abs=1e-6)  # scores pass through float32
    assert row.srcc_low < row.srcc < row.srcc_high
