"""torchmetrics: the judge as a metric whose state is gathered over processes.

    from reward_model.hosts.torchmetrics import VideoJudgeMetric  # needs torchmetrics

    metric = VideoJudgeMetric("path/to/judge", fps=16)
    metric.update(videos, prompts)  # in every validation step, on every process
    metric.compute()                # {"overall": .., "visual_quality": .., ..., "valid": ..}

Shapes: B videos, N videos of all updates and processes, T frames, C = 3 channels, H, W pixels, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from reward_model.hosts.core import JudgeLike, load_judge, with_time
from reward_model.video_reward import VideoJudgeReward


class VideoJudgeMetric(Metric):
    """Mean of each dimension over the videos that have a score, and the share of videos with a reward.

    Copies of the metric (`clone`, collections, trackers) share its judge, which stays on its own device.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    scores: list[Tensor]

    def __init__(
        self,
        judge: JudgeLike,
        *,
        fps: float | None,
        layout: str = "BTCHW",
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> None:
        """Load the judge.

        Args:
            judge: a judge, or where to load it from.
            fps: frame rate in Hz of tensors; None if all videos are files.
            layout: axes of tensors.
            device: device to load the judge on.
            **kwargs: arguments of `torchmetrics.Metric`.
        """
        super().__init__(**kwargs)
        self._judge = _SharedJudge(load_judge(judge, device=device))
        self.fps, self.layout = fps, layout
        self.dimensions = tuple(self._judge.judge.judge.config.dimensions)
        # flat: a process without videos then has a state of the same rank as the others
        self.add_state("scores", default=[], dist_reduce_fx="cat")

    def update(self, videos: Tensor | Sequence[Any], prompts: str | Sequence[str | None] | None = None) -> None:
        """Score B videos.

        Args:
            videos: as in a call of the judge, e.g. [B, T, C, H, W] in [0, 1].
            prompts: one per video; without them text alignment is missing.
        """
        if isinstance(videos, Tensor) and self.layout == "BTCHW":
            videos = with_time(videos)
        out = self._judge.judge(videos, prompts, fps=self.fps, layout=self.layout)
        scores = torch.stack([*(out.scores[name] for name in self.dimensions), out.rewards], dim=1)  # [B, D + 1]
        self.scores.append(scores.flatten().to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of each dimension, NaN if no video has it, and "valid", the share of videos with a reward."""
        scores = rearrange(dim_zero_cat(self.scores), "(n d) -> n d", d=len(self.dimensions) + 1)  # [N, D + 1]
        means = dict(zip(self.dimensions, scores[:, :-1].nanmean(dim=0), strict=True))
        return {**means, "valid": scores[:, -1].isfinite().float().mean()}


class _SharedJudge:
    """A judge that deep copies of its owner share; it is large, and its lock cannot be copied."""

    def __init__(self, judge: VideoJudgeReward) -> None:
        self.judge = judge

    def __deepcopy__(self, memo: dict[int, Any]) -> _SharedJudge:
        return self
