"""VideoAlign's inference object: its calls by DanceGRPO and other hosts."""

from __future__ import annotations

import math

import pytest
import torch

from reward_model.hosts.core import TrainingStop
from reward_model.hosts.video_align import VideoVLMRewardInference
from reward_model.media.video_io import write_video
from tests.host_clips import FPS, PROMPTS, clips


def test_video_align_hosts_get_their_four_floats(judge, tmp_path):
    write_video(tmp_path / "clip.mp4", clips(1)[0], FPS)
    inferencer = VideoVLMRewardInference("toy", device="cpu", dtype=torch.float32)
    assert inferencer.device == torch.device("cpu")
    (record,) = inferencer.reward([str(tmp_path / "clip.mp4")], [PROMPTS[0]], use_norm=True)
    assert [record] == judge.reward([tmp_path / "clip.mp4"], [PROMPTS[0]])
    assert list(record) == ["VQ", "MQ", "TA", "Overall"]
    assert torch.tensor(record["VQ"]).unsqueeze(0).isfinite().all()  # what the host does with it
    short = inferencer.reward([str(tmp_path / "clip.mp4")], [PROMPTS[0]], num_frames=2, max_pixels=1024, use_norm=False)
    assert 1 <= short[0]["VQ"] <= 5


@pytest.fixture
def batch(tmp_path):
    """Paths of a good clip, one that no decoder reads and one too narrow for the judge, and words of their reasons."""
    (tmp_path / "notes.mp4").write_bytes(b"")
    for name, height, width in (("clip", 32, 32), ("narrow", 8, 2048)):
        write_video(tmp_path / f"{name}.mp4", torch.rand(5, 3, height, width), FPS)
    return [str(tmp_path / f"{name}.mp4") for name in ("clip", "notes", "narrow")], ("", "empty", "too narrow")


def sample(inferencer, paths):
    """DanceGRPO's loop over the clips of a step: one call each by keyword, and -1 for what raises."""
    rewards = []
    for path in paths:
        try:
            with torch.no_grad():
                reward = inferencer.reward([path], [PROMPTS[0]], use_norm=True)
                rewards.append([torch.tensor(reward[0][name]).unsqueeze(0) for name in ("VQ", "MQ")])
        except Exception:  # noqa: BLE001  # as the host does
            rewards.append([torch.tensor(-1.0).unsqueeze(0)] * 2)
    return [torch.cat(values) for values in zip(*rewards, strict=True)]


@pytest.mark.parametrize("bad", [1, 2])
def test_dance_grpo_stops_at_the_first_clip_without_a_score(judge, batch, bad):
    paths, reasons = batch
    inferencer = VideoVLMRewardInference(judge, device="cpu")
    assert all(values.isfinite().all() for values in sample(inferencer, paths[:1]))
    with pytest.raises(TrainingStop, match=f"1 of 1 rewards are unavailable: video 0: .*{reasons[bad]}"):
        sample(inferencer, [paths[0], paths[bad], paths[0]])


def test_dance_grpo_stops_where_the_call_itself_fails(judge, mute):
    inferencer = VideoVLMRewardInference(judge, device="cpu")
    with pytest.raises(TrainingStop, match="the reward failed: fps and num_frames exclude each other"):
        inferencer.reward(["a.mp4"], ["a"], fps=2.0, num_frames=4)
    with pytest.warns(UserWarning, match="no calibration"):
        uncalibrated = VideoVLMRewardInference(mute, device="cpu")
    with pytest.raises(TrainingStop):
        sample(uncalibrated, ["a.mp4"])


def test_a_host_that_evaluates_keeps_nan_with_its_reason_and_the_others_scores(judge, batch):
    paths, reasons = batch
    inferencer = VideoVLMRewardInference(judge, device="cpu", on_missing="nan")
    with pytest.warns(UserWarning, match=f"2 of 3 .* video 1: .*{reasons[1]}.*; video 2: .*{reasons[2]}"):
        good, *bad = inferencer.reward(paths, PROMPTS)
    assert good == judge.reward(paths[:1], PROMPTS[:1])[0]
    assert all(math.isnan(value) for record in bad for value in record.values())
    with pytest.raises(RuntimeError, match="2 of 3 rewards"):
        VideoVLMRewardInference(judge, device="cpu", on_missing="raise").reward(paths, PROMPTS)


def test_video_align_settings_without_meaning_here_are_refused(mute):
    with pytest.raises(ValueError, match="load_from_pretrained_step must be -1, got 7"):
        VideoVLMRewardInference("toy", 7, "cpu")
    with pytest.raises(ValueError, match="model_name_or_path must be None"):
        VideoVLMRewardInference("toy", device="cpu", model_name_or_path="Qwen/Qwen2-VL-2B-Instruct")
    with pytest.raises(ValueError, match="on_missing must be one of nan, raise, stop, got 'skip'"):
        VideoVLMRewardInference("toy", device="cpu", on_missing="skip")
    with pytest.warns(UserWarning, match="no calibration constants for visual_quality, motion_quality, text_alignment"):
        VideoVLMRewardInference(mute, device="cpu")
