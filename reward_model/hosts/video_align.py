"""VideoAlign's inference object, for hosts that contain a copy of it: DanceGRPO, Pref-GRPO, VideoX-Fun and others.

Only the import changes; constructor and `reward` have the same signatures:

    from reward_model.hosts.video_align import VideoVLMRewardInference

    inferencer = VideoVLMRewardInference("path/to/judge", device="cuda:0", dtype=torch.bfloat16)
    inferencer.reward(["clip.mp4"], ["a red circle moving left"], use_norm=True)  # [{"VQ": .., "MQ": .., "TA": .., "Overall": ..}]

A clip that cannot be scored gets NaN, not an exception, which DanceGRPO would turn into a reward of -1.

Source: KwaiVGI/VideoAlign, inference.py, commit 219ab9d.
"""

from __future__ import annotations

import warnings

import torch

from reward_model.dimensions import video_align_names
from reward_model.hosts.core import JudgeLike, load_judge

RATED = tuple(video_align_names().values())
"""Dimensions that VQ, MQ and TA stand for."""


class VideoVLMRewardInference:
    """VideoAlign's `VideoVLMRewardInference` with a judge; its `reward` is `VideoJudgeReward.reward`."""

    def __init__(
        self,
        load_from_pretrained: JudgeLike,
        load_from_pretrained_step: int = -1,
        device: str | torch.device = "cuda",
        dtype: torch.dtype = torch.bfloat16,
        model_name_or_path: str | None = None,
    ) -> None:
        """Load the judge.

        Args:
            load_from_pretrained: judge folder, hub id, "toy", or a judge.
            load_from_pretrained_step: must be -1; a judge folder holds one checkpoint.
            device: device to load it on.
            dtype: dtype of the weights.
            model_name_or_path: must be None; the judge's configuration names its base.

        Raises:
            ValueError: a step or a base is given.
        """
        if load_from_pretrained_step != -1:
            raise ValueError(
                f"load_from_pretrained_step must be -1, got {load_from_pretrained_step}: a judge folder holds one "
                "checkpoint; name the folder of that step"
            )
        if model_name_or_path is not None:
            raise ValueError(
                f"model_name_or_path must be None, got {model_name_or_path!r}: judge_config.json names the base"
            )
        self.device = torch.device(device)
        self.judge = load_judge(load_from_pretrained, device=device, dtype=dtype)
        self.reward = self.judge.reward
        missing = [name for name in RATED if name not in self.judge.judge.config.calibration]
        if missing:
            # warn now: DanceGRPO swallows exceptions that are raised later
            warnings.warn(
                f"the judge has no calibration constants for {', '.join(missing)}: reward(use_norm=True) will raise; "
                "write them with `video-judge calibrate`, or use use_norm=False",
                stacklevel=2,
            )
