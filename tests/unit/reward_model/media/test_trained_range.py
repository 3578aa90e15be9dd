"""The range of clips that a judge was trained on: measured, noted in training, saved, and warned of."""

import dataclasses
import json

import pytest
import torch

from reward_model.datasets.readers import DataConfig
from reward_model.judge.checkpoints.format import JudgeConfig
from reward_model.media.frame_sampling import FramePolicy, take
from reward_model.media.trained_range import measure, unlike_training, widened
from reward_model.records import Video
from reward_model.toy_world import moving_shapes
from reward_model.training import stages
from reward_model.training.fit import FitConfig
from reward_model.training.recipe import StageConfig
from reward_model.training.tasks.mixture import open_mixture
from reward_model.video_reward import TOY_JUDGE, VideoJudgeReward
from tests.tiny_judge import build_judge, make_clip

WORLD = {"fps": [8.0, 8.0], "frames": [9, 9], "pixels": [1024, 1024]}


def test_a_clip_of_training_has_no_warning_and_others_name_what_is_unlike():
    assert unlike_training(make_clip(9, 32, 32, fps=8.0), WORLD) == ()
    assert unlike_training(make_clip(9, 32, 32, fps=24.0), WORLD) == ("24 judged frames a second (trained with 8)",)
    assert unlike_training(make_clip(4, 48, 64, fps=8.0), {**WORLD, "frames": [8, 16]}) == (
        "4 judged frames (trained with 8 to 16)",
        "3072 pixels a frame (trained with 1024)",
    )


def test_an_unknown_range_warns_of_nothing():
    assert unlike_training(make_clip(2, 480, 640, fps=1.0), {}) == ()
    assert unlike_training(make_clip(2, 480, 640, fps=1.0), {"frames": [2, 9]}) == ()


def test_rounded_time_stamps_are_within_the_range():
    assert unlike_training(make_clip(9, 32, 32, fps=7.9), WORLD) == ()  # 1.25 % off
    assert unlike_training(make_clip(9, 32, 32, fps=7.8), WORLD) != ()  # 2.5 % off


def test_the_rate_is_that_of_the_judged_frames():
    # 25 frames of 24 Hz last one second from first to last; 5 of them follow at 4 Hz
    plan = FramePolicy(mode="uniform", num_frames=5)
    clip = take(Video(torch.zeros(25, 3, 8, 8), fps=24.0), plan)
    assert measure(clip) == {"fps": 4.0, "frames": 5, "pixels": 64}


def test_a_range_widens_to_what_it_has_seen():
    first = widened({}, make_clip(9, 32, 32, fps=8.0))
    assert first == WORLD
    assert widened(first, make_clip(4, 16, 32, fps=12.0)) == {"fps": [8, 12], "frames": [4, 9], "pixels": [512, 1024]}
    assert widened(first, make_clip(1, 480, 640)) == WORLD  # an image has no rate


def test_scores_come_with_the_warnings_of_their_clips():
    judge = build_judge()
    judge.configure(trained_range={"fps": [8.0, 8.0]})
    reward = VideoJudgeReward(judge)
    videos = [torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32), "missing.mp4"]
    output = reward(videos, fps=[8.0, 24.0, 1.0])
    assert [len(found) for found in output.warnings] == [0, 1, 0]
    judge.configure(trained_range={})
    assert list(reward(videos[:2], fps=24.0).warnings) == [(), ()]


def test_the_range_is_saved_and_a_malformed_one_refused(tmp_path):
    judge = build_judge()
    judge.configure(trained_range=WORLD)
    judge.config.save(tmp_path)
    assert JudgeConfig.load(tmp_path) == judge.config
    file = tmp_path / "judge_config.json"
    for wrong in ({"fps": [8]}, {"fps": [9, 8]}, {"height": [1, 2]}):
        file.write_text(json.dumps({**dataclasses.asdict(judge.config), "trained_range": wrong}))
        with pytest.raises(ValueError, match="trained_range holds"):
            JudgeConfig.load(tmp_path)


@pytest.mark.parametrize("name", ["toy_judge", "toy_audit"])
def test_the_embedded_judges_know_the_clips_of_their_world(name):
    config = JudgeConfig.load(TOY_JUDGE.parent / name)
    (clip,) = moving_shapes.sample_rated(1, seed=0)
    planned = take(clip.video, FramePolicy.from_dict(config.frame_policy))
    assert {key: [value, value] for key, value in measure(planned).items()} == dict(config.trained_range)


def test_training_notes_the_range_of_its_clips():
    judge, data = build_judge(), [DataConfig(kind="moving_shapes")]
    judge.configure(frame_policy={"mode": "all", "max_frames": 9})
    fit = FitConfig(num_steps=1, learning_rate=1e-3, batch_size=2)
    stage = StageConfig(name="one", data=data, tasks={"rate": 1.0}, fit=fit)
    stages.make_examples(judge, open_mixture(data)(0, 2), stage, num=2)
    assert judge.config.trained_range == WORLD
