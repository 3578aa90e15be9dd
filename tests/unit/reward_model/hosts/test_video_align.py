"""VideoAlign's inference object: what its hosts do with it."""

from __future__ import annotations

import math

import pytest
import torch

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


def test_video_align_hosts_get_nan_for_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"")
    inferencer = VideoVLMRewardInference("toy", device="cpu", dtype=torch.float32)
    (record,) = inferencer.reward([str(tmp_path / "clip.mp4")], [PROMPTS[0]])
    assert all(math.isnan(value) for value in record.values())


def test_video_align_settings_without_meaning_here_are_refused(mute):
    with pytest.raises(ValueError, match="load_from_pretrained_step must be -1, got 7"):
        VideoVLMRewardInference("toy", 7, "cpu")
    with pytest.raises(ValueError, match="model_name_or_path must be None"):
        VideoVLMRewardInference("toy", device="cpu", model_name_or_path="Qwen/Qwen2-VL-2B-Instruct")
    with pytest.warns(UserWarning, match="no calibration constants for visual_quality, motion_quality, text_alignment"):
        VideoVLMRewardInference(mute, device="cpu")
