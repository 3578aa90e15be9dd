"""Calibration: constants, reliability curves and reference tables by hand, and where the constants are written."""

import json
import math

import numpy as np
import pytest
import torch

from reward_model import cli
from reward_model.evaluation.calibration import calibrate
from reward_model.evaluation.reference import QUANTILES, damage_rows, reference_rows
from reward_model.evaluation.reliability import choice_curve, spread_curve
from reward_model.judge.checkpoints.format import JudgeConfig
from reward_model.media.video_io import write_video
from reward_model.records import DIMENSIONS, RatedClip
from reward_model.video_reward import VideoJudgeReward
from tests.fake_judge import FakeJudge
from tests.tiny_judge import build_judge

KNOWN = {"a.mp4": 0.2, "b.mp4": 0.4, "c.mp4": 0.9}


def rated(name, prompt="x", **quality):
    return RatedClip(name, prompt, quality, name)


def test_a_spread_that_is_the_size_of_the_errors_is_calibrated():
    spread = np.array([0.1, 0.1, 0.3, 0.3])
    curve = spread_curve(spread, np.array([0.1, -0.1, -0.3, 0.3]), num_bins=2)
    assert curve.calibration_error == pytest.approx(0)
    assert (curve.scale, curve.srcc) == pytest.approx((1, 1))
    assert [(b.num, b.low, b.high) for b in curve.bins] == [(2, 0.1, 0.1), (2, 0.3, 0.3)]


def test_spread_and_errors_are_set_against_each_other_bin_by_bin():
    # bins of two by rising spread: root mean square of (0, 0.2) is 0.2 / sqrt 2, of the errors (0.3, 0.1) sqrt 0.05
    curve = spread_curve([0.4, 0.0, 0.2, 0.4], [0.0, 0.3, -0.1, 0.8], num_bins=2)
    first, second = curve.bins
    assert (first.spread, first.error, first.absolute_error) == pytest.approx(
        (0.2 / math.sqrt(2), math.sqrt(0.05), 0.2)
    )
    assert (second.spread, second.error, second.absolute_error) == pytest.approx((0.4, 0.8 / math.sqrt(2), 0.4))
    gaps = abs(0.2 / math.sqrt(2) - math.sqrt(0.05)), abs(0.4 - 0.8 / math.sqrt(2))
    assert curve.calibration_error == pytest.approx(sum(gaps) / 2)
    assert curve.scale == pytest.approx(math.sqrt((0.09 + 0.01 + 0.64) / (0.04 + 0.16 + 0.16)))


def test_cases_without_spread_or_label_are_left_out_and_none_is_no_curve():
    curve = spread_curve([0.1, math.nan, 0.1], [0.1, 0.1, math.nan])
    assert (curve.num, curve.calibration_error) == (1, pytest.approx(0))
    empty = spread_curve([math.nan], [0.1])
    assert (empty.num, empty.bins) == (0, ())
    assert math.isnan(empty.calibration_error)
    assert math.isnan(empty.scale)


def test_probabilities_are_set_against_the_share_that_was_right():
    # [0.5, 0.75): 0.6 and 0.7, one of them right; [0.75, 1]: 0.9 and 1.0, both right; [0, 0.25): 0.1, wrong
    curve = choice_curve([0.6, 0.7, 0.9, 1.0, 0.1, math.nan], [1, 0, 1, 1, 1, 1], num_bins=4)
    assert [(b.num, b.low, b.high) for b in curve.bins] == [(1, 0, 0.25), (2, 0.5, 0.75), (2, 0.75, 1)]
    assert [(b.probability, b.share) for b in curve.bins] == [
        pytest.approx((0.1, 1.0)),
        pytest.approx((0.65, 0.5)),
        pytest.approx((0.95, 1.0)),
    ]
    assert curve.calibration_error == pytest.approx((1 * 0.9 + 2 * 0.15 + 2 * 0.05) / 5)
    assert (curve.num, curve.coverage, curve.accuracy) == (5, pytest.approx(5 / 6), pytest.approx(3 / 5))
    assert choice_curve([0.5, 0.5], [1, 1]).accuracy == 0.5


def test_no_probability_at_all_is_coverage_0():
    curve = choice_curve([math.nan, math.nan], [1, 0])
    assert (curve.num, curve.coverage, curve.bins) == (0, 0.0, ())
    assert math.isnan(curve.accuracy)


def test_constants_are_mean_and_sample_deviation_in_both_units():
    clips = [rated(name, overall=1.0) for name in KNOWN]
    found = {row.dimension: row for row in calibrate(FakeJudge(KNOWN), clips).constants}
    row = found["overall"]
    mean, std = 0.5, math.sqrt((0.09 + 0.01 + 0.16) / 2)
    assert set(found) == set(DIMENSIONS)
    assert (row.num, row.coverage, row.mean, row.std) == pytest.approx((3, 1.0, mean, std))
    expected = {"unit_mean": mean, "unit_std": std, "raw_mean": 3.0, "raw_std": 4 * std}
    assert row.units() == pytest.approx(expected)


def test_clips_without_a_score_lower_the_coverage_and_nothing_else():
    clips = [rated(name) for name in ("a.mp4", "broken.mp4", "b.mp4", "b.mp4")]
    found = calibrate(FakeJudge(KNOWN), clips)
    assert [(row.num, row.coverage) for row in found.constants] == [(3, 0.75)] * 4
    assert found.reliability == {}  # nothing is labelled
    assert all(math.isnan(row.label) for row in found.reference)
    assert found.comparator is None


def test_errors_are_score_minus_label():
    clips = [rated("a.mp4", overall=0.3), rated("b.mp4", overall=0.6), rated("c.mp4", motion_quality=0.8)]
    found = calibrate(FakeJudge(KNOWN), clips, num_bins=1).reliability
    assert set(found) == {"motion_quality", "overall"}
    (bin,) = found["overall"].bins  # the fake judge's spread is 0.1 throughout
    assert (bin.num, bin.spread) == (2, pytest.approx(0.1))
    assert bin.absolute_error == pytest.approx((0.1 + 0.2) / 2)


def test_the_comparator_is_read_on_pairs_of_one_prompt():
    labels = {"a.mp4": 0.1, "b.mp4": 0.5, "c.mp4": 1.0}
    clips = [rated(name, overall=label) for name, label in labels.items()]
    clips += [rated("a.mp4", prompt="y", overall=0.3)]
    judge = FakeJudge(KNOWN)
    curve = calibrate(judge, clips, comparator=judge, num_bins=2).comparator
    assert (curve.num, curve.accuracy) == (3, 1.0)
    # P(the better one) is (1 + difference of the scores) / 2: 0.6, 0.75, 0.85
    assert curve.calibration_error == pytest.approx((0.4 + 0.25 + 0.15) / 3)
    wrong = calibrate(judge, clips, comparator=FakeJudge({"a.mp4": 0.9, "b.mp4": 0.5, "c.mp4": 0.1})).comparator
    assert wrong.accuracy == 0.0


def test_ties_are_shared_out_as_no_labelled_pair_is_one():
    class Undecided(FakeJudge):
        def compare(self, a, b, prompts, *, swap=True, batch_size=16):
            plain = super().compare(a, b, prompts)
            tie = torch.full_like(plain.p_first, 0.5)
            return type(plain)(plain.p_first / 2, tie, plain.margin / 2, plain.valid, plain.reasons, plain.consistent)

    clips = [rated("a.mp4", overall=0.1), rated("c.mp4", overall=1.0)]
    judge = Undecided(KNOWN)
    curve = calibrate(judge, clips, comparator=judge).comparator
    assert abs(curve.bins[0].probability - 0.5) == pytest.approx(0.35)  # (1 + 0.7) / 2 or its counterpart


def test_scores_that_do_not_differ_have_no_constants():
    with pytest.raises(ValueError, match="z scores need clips that differ"):
        calibrate(FakeJudge({"a.mp4": 0.5, "b.mp4": 0.5}), [rated("a.mp4"), rated("b.mp4")])
    with pytest.raises(ValueError, match="none of the 1 clips"):
        calibrate(FakeJudge(), [rated("broken.mp4")])
    with pytest.raises(ValueError, match="no clips"):
        calibrate(FakeJudge(), [])


def test_reference_rows_name_the_labels_around_each_quantile():
    scores = np.linspace(0, 1, 101)
    labels = scores**2
    labels[:50] = math.nan
    low, quarter, median, upper, high = reference_rows("overall", scores, labels)
    assert [row.quantile for row in (low, quarter, median, upper, high)] == list(QUANTILES)
    assert (upper.unit, upper.raw) == pytest.approx((0.75, 4.0))
    assert upper.z == pytest.approx(0.25 / scores.std(ddof=1))
    # ranks (i + 0.5) / 101 within 0.05 of 0.75 are those of i = 71 to 80
    assert upper.num_labelled == 10
    assert upper.label == pytest.approx(np.mean([(i / 100) ** 2 for i in range(71, 81)]))
    assert (low.num_labelled, math.isnan(low.label)) == (0, True)


def test_damage_rows_are_labelled_by_the_world():
    rows = damage_rows(FakeJudge(), num=4, seed=0)
    labels = {(row.dimension, row.fault): row.label for row in rows}
    assert [row.num for row in rows] == [4] * 14
    for dimension in ("visual_quality", "motion_quality"):
        found = [labels[dimension, fault] for fault in ("none", "slight", "moderate", "strong", "severe")]
        assert found == pytest.approx([1.0, 0.8, 0.55, 0.3, 0.12])
    assert labels["text_alignment", "as asked"] == 1.0
    assert 1 > labels["text_alignment", "1 wrong"] > labels["text_alignment", "2 wrong"]
    assert all(row.p10 <= row.score <= row.p90 for row in rows)
    assert rows == damage_rows(FakeJudge(), num=4, seed=0, batch_size=3)


def test_tables_are_strict_json_and_tidy_text():
    found = calibrate(FakeJudge(KNOWN), [rated(name) for name in KNOWN])
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["reference"][0]["label"] is None
    assert (plain["comparator"], plain["reliability"], plain["damage"]) == (None, {}, [])
    lines = found.format().splitlines()
    assert lines[1].split() == [
        "dimension",
        "num",
        "coverage",
        "unit",
        "mean",
        "unit",
        "std",
        "raw",
        "mean",
        "raw",
        "std",
    ]
    assert lines[-1].startswith("Reliability of the comparator: no comparator")
    assert found.for_config()["overall"] == {"mean": found.constants[-1].mean, "std": found.constants[-1].std}


@pytest.fixture(scope="module")
def judge():
    """A random judge that puts nearly all probability on its answer words."""
    judge = build_judge()
    plain, size = judge.next_token_logits, len(judge.model.lm_head.weight)

    def lifted(requests, **options):
        words = judge.level_ids if len(requests[0].clips) == 1 else judge.preference_ids
        lift = torch.zeros(size).index_fill(0, torch.tensor(words), 50.0)
        return [logits + lift for logits in plain(requests, **options)]

    judge.next_token_logits = lifted
    return judge.requires_grad_(False)


@pytest.fixture
def manifest(tmp_path):
    """Four rated clips of one prompt."""
    rows = ["video,prompt,visual_quality,overall"]
    for place in range(4):
        frames = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(place)) * place / 4
        write_video(tmp_path / f"{place}.mp4", frames, 8.0)
        rows.append(f"{place}.mp4,a red ring,{place / 4},{place / 4}")
    (tmp_path / "rated.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path / "rated.csv"


def run(judge, *argv):
    return cli.main(["calibrate", *map(str, argv)], judge_factory=lambda args: VideoJudgeReward(judge))


def test_constants_go_into_the_judges_own_folder_and_make_its_z_scores(judge, manifest, tmp_path, capsys):
    folder = tmp_path / "judge"
    judge.configure(calibration={}, trained_on="noise")
    judge.save_pretrained(folder)
    before = {path.name for path in folder.iterdir()}
    assert run(judge, manifest, "--judge", folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    config = JudgeConfig.load(folder)
    assert {path.name for path in folder.iterdir()} == before
    assert found["written_to"] == str(folder / "judge_config.json")
    assert config.trained_on == "noise"
    overall = {row["dimension"]: row for row in found["constants"]}["overall"]
    assert config.calibration["overall"] == {"mean": overall["unit_mean"], "std": overall["unit_std"]}
    assert found["comparator"]["num"] == 6
    judge.configure(calibration=config.calibration)
    videos = [manifest.parent / f"{place}.mp4" for place in range(4)]
    z = VideoJudgeReward(judge)(videos, "a red ring", normalize="z").scores
    for values in z.values():
        torch.testing.assert_close(values.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
        torch.testing.assert_close(values.std(), torch.tensor(1.0), atol=1e-4, rtol=0)


def test_clips_without_labels_or_prompts_give_constants_alone_and_others_stay(judge, manifest, tmp_path, capsys):
    folder = tmp_path / "judge"
    kept = {"mean": 0.5, "std": 0.25}
    judge.configure(calibration={"text_alignment": kept})
    judge.save_pretrained(folder)
    listing = tmp_path / "plain.csv"
    listing.write_text("video\n" + "".join(f"{place}.mp4\n" for place in range(4)), encoding="utf-8")
    assert run(judge, listing, "--judge", folder) == 0
    config = JudgeConfig.load(folder)
    assert config.calibration["text_alignment"] == kept
    assert set(config.calibration) == set(DIMENSIONS)
    text = capsys.readouterr().out
    assert "Reliability of the spread" not in text
    assert "constants of visual_quality, motion_quality, overall written to" in text


def test_a_copy_of_the_judge_is_saved_where_it_has_no_folder(judge, manifest, tmp_path, capsys):
    judge.configure(calibration={})
    copy = tmp_path / "copy"
    assert run(judge, manifest, "--output", copy, "--pairs", 0) == 0
    assert set(JudgeConfig.load(copy).calibration) == set(DIMENSIONS)
    assert VideoJudgeReward.from_pretrained(copy).judge.config.calibration == judge.config.calibration
    assert run(judge, manifest, "--output", copy) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(judge, manifest, tmp_path, capsys):
    folder = tmp_path / "judge"
    judge.configure(calibration={})
    judge.save_pretrained(folder)
    assert run(judge, manifest, "--judge", folder, "--dry-run") == 0
    assert JudgeConfig.load(folder).calibration == {}
    assert "written to" not in capsys.readouterr().out


def test_the_world_has_a_reference_by_known_damage(judge, capsys):
    assert run(judge, "moving_shapes", "--dry-run", "--num", 20, "--pairs", 4, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["fault"] for row in found["damage"]][-4:] == ["as asked", "1 wrong", "2 wrong", "3 wrong"]
    assert set(found["reliability"]) == set(DIMENSIONS)
