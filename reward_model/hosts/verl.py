"""verl-omni and verl: `compute_score` functions that the training configuration names.

    reward.custom_reward_function.path=pkg://reward_model.hosts.verl
    reward.custom_reward_function.name=compute_score_video
    +reward.custom_reward_function.reward_kwargs.judge=path/to/judge
    +reward.custom_reward_function.reward_kwargs.fps=16
    +reward.custom_reward_function.reward_kwargs.device=cuda:0

With other rewards, verl-omni sums them only under the manager that is made for it, which must be named:

    reward.reward_manager.name=MultiVisualRewardManager
    reward.custom_reward_function.path=pkg://verl_omni.reward_loop.reward_manager.multi
    reward.custom_reward_function.name=_multi_reward_placeholder
    +reward.reward_functions.video.path=pkg://reward_model.hosts.verl
    +reward.reward_functions.video.name=compute_score_video
    +reward.reward_functions.video.weight=1.0
    +reward.reward_functions.video.required=true
    +reward.reward_functions.video.judge=path/to/judge
    +reward.reward_functions.video.fps=16
    +reward.reward_functions.video.device=cuda:0

Every reward worker is a Ray actor that loads a judge of its own; there are `reward.num_workers` of them, eight unless set, and in verl
before that `reward_model.num_workers`. They ask Ray for no GPU, so Ray hides the GPUs from them and a judge without `device` runs on
the CPU, with a warning. To use a GPU, leave one out of the trainer's, start the run with RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0, which
lets such actors see all GPUs, set `reward.num_workers=1` and name the free one as `device`.

These hosts score one sample per call, from many tasks at once: samples that queue up while the judge is busy are scored
in its next batch. A missing reward raises; MultiVisualRewardManager counts that as 0 unless the entry says `required=true`.

Source: verl-project/verl-omni, verl_omni/reward_loop/reward_manager/{visual,multi}.py, verl_omni/utils/reward_score/genrm_ocr.py and
docs/contributing/integrating_a_diffusion_model.md (4.1), commit a1139ba; volcengine/verl,
verl/experimental/reward_loop/{reward_loop,reward_manager/naive}.py, commit b178a3c.

Shapes: B videos, T frames, C = 3 channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from reward_model.hosts.core import HostScores, JudgeLike, in_thread
from reward_model.hosts.micro_batcher import shared_micro_batcher

ADVICE = "In verl-omni set required=true for this reward; otherwise it counts as 0."
LAYOUTS = ("CHW", "TCHW", "CTHW", "THWC", "BCTHW", "BTCHW", "BTHWC")
"""Layouts in which verl-omni's pipelines give pixels to a reward."""


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
    layout: str | None = None,
    **host: Any,
) -> dict[str, float]:
    """Score a generated video against its prompt (verl-omni).

    The host sends uint8 [T, C, H, W] or [C, H, W], and pipelines that do not go through its rollout server also [C, T, H, W],
    [T, H, W, C] and, batched, [B, C, T, H, W], [B, T, C, H, W] and [B, T, H, W, C]. The axis of 3 tells them apart; where two axes
    have 3, as in three frames, the sample is refused unless `layout` is given.

    Args:
        data_source: not used.
        solution_image: uint8 in 0..255, a video or a still; several videos of one prompt have the mean of their scores.
        ground_truth: the prompt; empty if there is none.
        extra_info: not used.
        judge: a judge, or where to load it from.
        fps: frame rate in Hz of the video.
        weights: dimension -> weight of the score; None for overall.
        device: device to load the judge on.
        layout: axes of solution_image, such as "TCHW" or "CTHW"; None recognises them.
        **host: further arguments of the host, not used.

    Returns:
        "score" and each dimension, for the host's log.

    Raises:
        ValueError: another kind of tensor, such as latents, or axes that cannot be told apart.
        RuntimeError: the score is missing.
    """
    videos = _pixels(solution_image, layout)
    batcher = shared_micro_batcher(judge, fps=fps, weights=weights, device=device)
    return _mean([_named(batcher.score(video, ground_truth or None)) for video in videos])


def _pixels(solution_image: Tensor, layout: str | None) -> Tensor:
    """Return the bytes [B, T, C, H, W] of a sample."""
    if solution_image.dtype != torch.uint8:
        raise ValueError(
            f"solution_image must be uint8 pixels, got {solution_image.dtype} {list(solution_image.shape)}; set the rollout's "
            "output_type to pixels"
        )
    if 0 in solution_image.shape:
        raise ValueError(f"solution_image is empty: {list(solution_image.shape)}")
    axes = layout or _layout_of(solution_image.shape)
    expected = {"B", "T"} & set(axes) | {"C", "H", "W"}
    if set(axes) != expected or len(axes) != solution_image.ndim or solution_image.shape[axes.find("C")] != 3:
        raise ValueError(
            f"layout must name the {solution_image.ndim} axes of solution_image, each of C, H, W once and B or T where there are "
            f"any, with 3 channels; got {axes!r} for {list(solution_image.shape)}"
        )
    return rearrange(
        solution_image, f"{' '.join(axes)} -> {' '.join(axis if axis in axes else '1' for axis in 'BT')} C H W"
    )


def _layout_of(shape: Sequence[int]) -> str:
    """Return the one layout of the host in which these sizes have 3 channels."""
    fitting = [axes for axes in LAYOUTS if len(axes) == len(shape) and shape[axes.index("C")] == 3]
    if len(fitting) == 1:
        return fitting[0]
    cause = f"may be any of {', '.join(fitting)}" if fitting else f"is none of {', '.join(LAYOUTS)} with 3 channels"
    raise ValueError(f"solution_image {list(shape)} {cause}; name its axes by `layout` among the reward's settings")


def _mean(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(record[name] for record in records) for name in records[0]}


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
