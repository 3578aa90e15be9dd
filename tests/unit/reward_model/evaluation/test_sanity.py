"""The sanity table: what each damage does, what must fall, and what a judge that does not look gets."""

import json
import math

import pytest
import torch

from reward_model import cli
from reward_model.evaluation.sanity import CHECKS, TRIALS, clean_shapes, sanity
from reward_model.media.video_io import write_video
from reward_model.records import DIMENSIONS, RatedClip, RewardOutput, Video
from reward_model.toy_world import moving_shapes, oracle
from reward_model.video_reward import VideoJudgeReward

EXPECTED = [(check.damage, check.dimension) for check in CHECKS if check.must_fall]


class Eye:
    """A judge by a function: look(video, prompt) -> dimension -> score; warns of every rate but 8 Hz."""

    frame_policy = None

    def __init__(self, look):
        self.look, self.num_scored = look, 0

    def __call__(self, videos, prompts, *, readout="level", num_samples=1):
        self.num_scored += len(videos)
        found = [self.look(video, prompt) for video, prompt in zip(videos, prompts, strict=True)]
        scores = {name: torch.tensor([row.get(name, math.nan) for row in found]) for name in DIMENSIONS}
        none = [""] * len(found)
        return RewardOutput(
            rewards=scores["overall"],
            scores=scores,
            std=scores,
            level_probs={},
            level_mass={},
            valid={name: torch.isfinite(values) for name, values in scores.items()},
            reasons=dict.fromkeys(DIMENSIONS, none),
            texts=None,
            frame_plan=[None] * len(found),
            overall_from=[()] * len(found),
            warnings=[() if video.fps == 8 else ("rate",) for video in videos],
        )


def by_oracle(video, prompt):
    return oracle.score(video.frames, prompt)


def rows_of(table):
    return {(row.damage, row.dimension): row for row in table.rows}


def noise_clip(prompt, seed=0, num_frames=6):
    frames = torch.rand(num_frames, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return RatedClip(Video(frames, 8.0), prompt, {}, str(seed))


@pytest.fixture(scope="module")
def clips():
    return clean_shapes(6, seed=0)


def test_the_oracle_passes_every_check(clips):
    table = sanity(Eye(by_oracle), clips)
    rows = rows_of(table)
    assert [rows[key].holds for key in EXPECTED] == [True] * 6
    assert table.failed == ()
    assert all(rows[key].share_fallen == 1.0 for key in EXPECTED)
    assert rows["reverse", "motion_quality"].holds is None
    assert abs(rows["reverse", "motion_quality"].change) < 0.01  # a shape that moves evenly does so backwards as well
    assert rows["half_fps", "text_alignment"].change == 0  # it sees frames only


def test_a_judge_that_does_not_look_fails_every_check(clips):
    table = sanity(Eye(lambda video, prompt: dict.fromkeys(DIMENSIONS, 0.7)), clips)
    assert [(row.damage, row.dimension) for row in table.failed] == EXPECTED
    assert {row.change for row in table.rows} == {0.0}


def test_a_judge_that_is_deaf_to_prompts_fails_by_prompts_alone(clips):
    first = {id(clip.video): clip.prompt for clip in clips}

    def deaf(video, prompt):
        deaf.own = first.get(id(video), deaf.own)  # trials of a clip follow its batch of one
        return oracle.score(video.frames, deaf.own)

    deaf.own = ""
    table = sanity(Eye(deaf), clips, batch_size=1)
    assert [(row.damage, row.dimension) for row in table.failed] == [("prompt_swap", "text_alignment")]


def test_changes_are_paired_and_their_interval_is_of_the_mean_change():
    clips = [noise_clip("a dog runs left", seed) for seed in range(5)]
    moving = {clip.video.frames.sum().item(): 0.1 * place for place, clip in enumerate(clips)}

    def look(video, prompt):
        still = bool((video.frames == video.frames[:1]).all())
        own = moving.get(video.frames.sum().item(), 0.0)
        return {"motion_quality": own - 0.5 if still else own}

    # a frozen clip is another one to this judge: 0 - 0.5, against 0, 0.1, 0.2, 0.3, 0.4 before
    row = rows_of(sanity(Eye(look), clips))["freeze", "motion_quality"]
    assert (row.num_clips, row.before, row.after, row.change) == pytest.approx((5, 0.2, -0.5, -0.7))
    assert -0.9 <= row.low < -0.7 < row.high <= -0.5  # means of five draws of -0.5, ..., -0.9
    assert row.holds is True


def test_what_cannot_be_tested_is_said_not_to_be(clips):
    unnamed = [RatedClip(clip.video, None, {}, clip.source_id) for clip in clips]
    rows = rows_of(sanity(Eye(lambda video, prompt: {"visual_quality": 0.5}), unnamed))
    assert (rows["prompt_swap", "text_alignment"].num_clips, rows["prompt_swap", "text_alignment"].holds) == (0, None)
    assert math.isnan(rows["prompt_swap", "text_alignment"].change)
    assert rows["blur", "visual_quality"].holds is False
    few = sanity(Eye(by_oracle), clips[:4])  # four clips that all fall could be chance
    assert [row.holds for row in few.rows] == [None] * len(CHECKS)
    assert "not tested" in few.format()


def test_a_prompt_without_a_direction_says_nothing_of_a_reversed_clip():
    still = [noise_clip("a vase on the table", seed) for seed in range(5)]
    moves = [noise_clip("Birds rising in the sky", seed + 5) for seed in range(6)]
    rows = rows_of(sanity(Eye(lambda video, prompt: {"text_alignment": 0.5}), still + moves))
    assert rows["reverse", "text_alignment"].num_clips == 6
    assert rows["prompt_swap", "text_alignment"].num_clips == 11


def test_damage_is_what_its_name_says():
    video, generator = noise_clip("x").video, torch.Generator().manual_seed(0)
    shown = {name: damage(video, generator) for name, damage in TRIALS.items()}
    assert torch.equal(shown["freeze"].frames, video.frames[:1].expand_as(video.frames))
    assert torch.equal(shown["reverse"].frames, video.frames.flip(0))
    assert sorted(shown["shuffle"].frames.sum((1, 2, 3)).tolist()) == sorted(video.frames.sum((1, 2, 3)).tolist())
    assert not torch.equal(shown["shuffle"].frames, video.frames)
    assert (shown["half_fps"].fps, shown["double_fps"].fps) == (4.0, 16.0)
    assert shown["noise"].frames.std() > video.frames.std()
    assert shown["prompt_swap"] is video


def test_blur_is_as_strong_on_large_frames_as_on_small_ones():
    def contrast_left(side):
        stripes = (torch.arange(side) // (side // 4) % 2).float().expand(1, 3, side, side).clone()
        blurred = TRIALS["blur"](Video(stripes, 8.0), torch.Generator())
        return float(blurred.frames.std() / stripes.std())

    assert contrast_left(32) == pytest.approx(contrast_left(128), abs=0.05)
    assert contrast_left(32) < 0.8


def test_batches_do_not_matter(clips):
    one, all_at_once = (sanity(Eye(by_oracle), clips, batch_size=size) for size in (1, 6))
    assert one == all_at_once


def test_another_rate_is_reported_with_its_warnings(clips):
    rows = rows_of(sanity(Eye(by_oracle), clips))
    assert rows["double_fps", "motion_quality"].num_warned == 6
    assert rows["blur", "visual_quality"].num_warned == 0


def test_the_table_is_strict_json_and_tidy_text(clips):
    table = sanity(Eye(by_oracle), clips[:4])
    plain = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert (plain["num_unread"], plain["num_failed"], len(plain["rows"])) == (0, 0, len(CHECKS))
    assert plain["rows"][0]["change"] is None
    assert table.format().splitlines()[-1] == "0 of 0 expected directions hold"


def test_the_command_counts_files_that_cannot_be_read(tmp_path, capsys):
    for place in range(5):
        write_video(tmp_path / f"{place}.mp4", noise_clip("x", place).video.frames, 8.0)
    (tmp_path / "broken.mp4").write_bytes(b"")
    eye = Eye(
        lambda video, prompt: {
            "visual_quality": float(video.frames[:, :, :-1].sub(video.frames[:, :, 1:]).abs().mean())
        }
    )
    status = cli.main(["sanity", str(tmp_path), "--json"], judge_factory=lambda args: eye)
    found = json.loads(capsys.readouterr().out)
    rows = {(row["damage"], row["dimension"]): row for row in found["rows"]}
    assert (status, found["num_unread"]) == (1, 1)
    assert rows["blur", "visual_quality"]["holds"] is True
    assert rows["noise", "visual_quality"]["holds"] is False  # this judge takes noise for detail
    assert rows["freeze", "motion_quality"]["holds"] is None
    assert eye.num_scored == 5 * len(TRIALS)


@pytest.mark.slow
def test_the_embedded_judge_passes_every_check():
    table = sanity(VideoJudgeReward.from_pretrained("toy"), clean_shapes(16, seed=1))
    assert table.failed == ()
    assert [row.holds for row in table.rows if row.must_fall] == [True] * 6


def test_clips_to_damage_are_clean_and_fit_their_prompts():
    clips = clean_shapes(5, seed=3)
    assert all(clip.facts["defects"] == {} and clip.facts["scene"] == clip.facts["shown"] for clip in clips)
    held_out = {moving_shapes.caption(scene) for scene in moving_shapes.split(moving_shapes.CORE)[1]}
    assert {clip.prompt for clip in clips} <= held_out


def test_nothing_to_damage_is_refused():
    with pytest.raises(ValueError, match="no clips"):
        sanity(Eye(by_oracle), [])
