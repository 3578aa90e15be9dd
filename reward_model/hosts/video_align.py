"""VideoAlign's inference object, for hosts that contain a copy of it: DanceGRPO, Pref-GRPO, VideoX-Fun and others.

Only the import changes; constructor and `reward` have the same signatures:

    from reward_model.hosts.video_align import VideoVLMRewardInference

    inferencer = VideoVLMRewardInference("path/to/judge", device="cuda:0", dtype=torch.bfloat16)
    inferencer.reward(["clip.mp4"], ["a red circle moving left"], use_norm=True)  # [{"VQ": .., "MQ": .., "TA": .., "Overall": ..}]

DanceGRPO turns an exception into a reward of -1 and spreads a NaN over its group and, in one step, over all weights. So by default
the first clip without a score, and any other failure, ends the training process with its reason (`TrainingStop`). With
`on_missing="nan"` such a clip gets NaN and a warning, which suits a host that only evaluates; "raise" is for a host that lets
exceptions through.

Source: KwaiVGI/VideoAlign, inference.py, commit 219ab9d; XueZeyue/DanceGRPO, fastvideo/train_grpo_hunyuan.py, commit 15cc71d.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from reward_model.dimensions import video_align_names
from reward_model.hosts.core import JudgeLike, OnMissing, load_judge, report_missing, stopping

RATED = tuple(video_align_names().values())
"""Dimensions that VQ, MQ and TA stand for."""


class VideoVLMRewardInference:
    """VideoAlign's `VideoVLMRewardInference` with a judge."""

    def __init__(
        self,
        load_from_pretrained: JudgeLike,
        load_from_pretrained_step: int = -1,
        device: str | torch.device = "cuda",
        dtype: torch.dtype = torch.bfloat16,
        model_name_or_path: str | None = None,
        on_missing: OnMissing = "stop",
    ) -> None:
        """Load the judge.

        Args:
            load_from_pretrained: judge folder, hub id, "toy", or a judge.
            load_from_pretrained_step: must be -1; a judge folder holds one checkpoint.
            device: device to load it on.
            dtype: dtype of the weights.
            model_name_or_path: must be None; the judge's configuration names its base.
            on_missing: treatment of a clip without a score: "stop" ends the process with the reason, and does so for every
                other failure of `reward`; "nan" gives it NaN with a warning; "raise" raises RuntimeError.

        Raises:
            ValueError: a step or a base is given, or another treatment.
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
        report_missing([], on_missing)  # another word is refused before the judge is loaded
        self.judge = load_judge(load_from_pretrained, device=device, dtype=dtype)
        self.on_missing = on_missing
        missing = [name for name in RATED if name not in self.judge.judge.config.calibration]
        if missing:
            # warn now: DanceGRPO swallows exceptions that are raised later
            warnings.warn(
                f"the judge has no calibration constants for {', '.join(missing)}: reward(use_norm=True) will raise; "
                "write them with `video-judge calibrate`, or use use_norm=False",
                stacklevel=2,
            )

    def reward(
        self,
        video_paths: Sequence[str | Path],
        prompts: Sequence[str],
        fps: float | None = None,
        num_frames: int | None = None,
        max_pixels: int | None = None,
        use_norm: bool = True,
    ) -> list[dict[str, float]]:
        """Score files as `VideoJudgeReward.reward` does.

        Args:
            video_paths: B files.
            prompts: B generation prompts.
            fps: sampling rate in Hz; excludes num_frames.
            num_frames: uniformly sampled frames; excludes fps.
            max_pixels: pixel cap per frame.
            use_norm: z scores by the calibration constants; otherwise raw.

        Returns:
            B dicts with VQ, MQ, TA and Overall.

        Raises:
            RuntimeError: a score is missing, with on_missing="raise".
            TrainingStop: a score is missing or the call has failed, with on_missing="stop".
        """
        aligned = stopping(self.judge.aligned) if self.on_missing == "stop" else self.judge.aligned
        scores = aligned(video_paths, prompts, fps, num_frames, max_pixels, use_norm)
        advice = "" if self.on_missing == "nan" else "on_missing='nan' would keep such clips as NaN."
        report_missing(scores.reasons, self.on_missing, advice)
        return scores.records
