"""verl-omni and verl: `compute_score` functions that the training configuration names.

    reward.custom_reward_function.path=pkg://reward_model.hosts.verl
    reward.custom_reward_function.name=compute_score_video
    +reward.custom_reward_function.reward_kwargs.judge=path/to/judge
    +reward.custom_reward_function.reward_kwargs.fps=16
    # with other rewards: reward.reward_functions.video.{path,name,judge,fps,weight}, and always required=true

These hosts score one sample per call, from many tasks at once: samples that queue up while the judge is busy are scored
in its next batch. A missing reward raises; verl-omni counts that as 0 unless the entry says `required=true`.

Source: verl-project/verl-omni, verl_omni/reward_loop/reward_manager, commit a1139ba; volcengine/verl,
verl/trainer/ppo/reward.py and verl/experimental/reward_loop, January 2026.

Shapes: T frames, C = 3 channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reward_model.hosts.core import HostScores, JudgeLike, in_thread
from reward_model.hosts.micro_batcher import shared_micro_batcher

ADVICE = "In verl-omni set required=true for this reward; otherwise it counts as 0."


def compute_score_video_sync(
    data_source: str,
    solution_image: Tensor,
    ground_truth: str | None,
    extra_info: Mapping[str, Any] | None = None,
    *,
    judge: JudgeLike,
    fps: float,
    weights: Mapping[str, float] | None = None,
    device: str | None = None,
    **host: Any,
) -> dict[str, float]:
    """Score a generated video against its prompt (verl-omni).

    Args:
        data_source: not used.
        solution_image: uint8 [T, C, H, W] in 0..255, or a still [C, H, W].
        ground_truth: the prompt; empty if there is none.
        extra_info: not used.
        judge: a judge, or where to load it from.
        fps: frame rate in Hz of the video.
        weights: dimension -> weight of the score; None for overall.
        device: device to load the judge on.
        **host: further arguments of the host, not used.

    Returns:
        "score" and each dimension, for the host's log.

    Raises:
        ValueError: another kind of tensor, such as latents.
        RuntimeError: the score is missing.
    """
    if solution_image.dtype != torch.uint8 or solution_image.ndim not in (3, 4):
        raise ValueError(
            "solution_image must be uint8 [T, C, H, W] or [C, H, W], got "
            f"{solution_image.dtype} {list(solution_image.shape)}; set the rollout's output_type to pixels"
        )
    video = solution_image if solution_image.ndim == 4 else solution_image.unsqueeze(0)
    return _named(
        shared_micro_batcher(judge, fps=fps, weights=weights, device=device).score(video, ground_truth or None)
    )


def compute_score_caption_sync(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    judge: JudgeLike,
    key: str = "video",
    weights: Mapping[str, float] | None = None,
    device: str | None = None,
    **host: Any,
) -> dict[str, float]:
    """Score a generated text against the video that it describes (verl).

    Args:
        data_source: not used.
        solution_str: the text.
        ground_truth: not used.
        extra_info: mapping with the path or bytes of the video.
        judge: a judge, or where to load it from.
        key: key of the video in extra_info.
        weights: dimension -> weight of the score; None for text alignment.
        device: device to load the judge on.
        **host: further arguments of the host, not used.

    Returns:
        "score" and each dimension, for the host's log.

    Raises:
        ValueError: no video.
        RuntimeError: the score is missing.
    """
    if not (extra_info or {}).get(key):
        raise ValueError(f"extra_info must hold a path or bytes as {key!r}, got {sorted(extra_info or {})}")
    assert extra_info is not None
    weights = weights if weights is not None else {"text_alignment": 1.0}
    return _named(
        shared_micro_batcher(judge, fps=None, weights=weights, device=device).score(extra_info[key], solution_str)
    )


def _named(scores: HostScores) -> dict[str, float]:
    scores.or_raise(ADVICE)
    return {"score": scores.rewards[0], **{name: values[0] for name, values in scores.scores.items()}}


compute_score_video = in_thread(compute_score_video_sync)
"""`compute_score_video_sync` as a coroutine function."""

compute_score_caption = in_thread(compute_score_caption_sync)
"""`compute_score_caption_sync` as a coroutine function."""
