"""Judges as pyiqa metrics: created by name, with direction and range as attributes.

    from reward_model.hosts.pyiqa import create_judge, list_judges

    metric = create_judge("toy", fps=8)                 # list_judges() names the judges that need no download
    metric(videos, prompts=prompts)                     # [B, T, C, H, W] in [0, 1], or a path, to scores [B]
    metric.lower_better, metric.score_range, metric.metric_mode
    loss = create_judge("toy", as_loss=True, fps=8)(videos)  # a scalar with gradient

Source: chaofengc/IQA-PyTorch, pyiqa/api_helpers.py and pyiqa/models/inference_model.py.

Shapes: B videos, T frames, C = 3 channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reward_model.hosts.core import load_judge, scores_of, with_time
from reward_model.video_reward import TOY_JUDGE, VideoJudgeReward

EMBEDDED: dict[str, str | Path] = {"toy": "toy", "toy_audit": TOY_JUDGE.with_name("toy_audit")}
"""Name -> location of the judges that come with the package."""


def list_judges() -> list[str]:
    """Return the names of the judges that come with the package; `create_judge` takes folders and hub ids as well."""
    return sorted(EMBEDDED)


def create_judge(
    name: str,
    *,
    as_loss: bool = False,
    device: str | torch.device | None = None,
    fps: float | None = None,
    dimension: str = "overall",
    loss_weight: float = -1.0,
) -> JudgeMetric:
    """Return a judge as a metric or a loss.

    Args:
        name: one of `list_judges()`, a judge folder or a hub id.
        as_loss: return loss_weight times the mean score, with gradient to the pixels.
        device: device to load it on.
        fps: frame rate in Hz of tensors; files have their own.
        dimension: dimension of the score.
        loss_weight: factor of the loss; -1, unlike pyiqa's 1, because higher is better and a loss is minimised.

    Returns:
        The metric.
    """
    loaded = load_judge(EMBEDDED.get(name, name), device=device)
    return JudgeMetric(loaded, fps=fps, dimension=dimension, loss_weight=loss_weight if as_loss else None)


class JudgeMetric(nn.Module):
    """A no-reference metric in [0, 1]; higher is better."""

    lower_better = False
    metric_mode = "NR"
    score_range = "0, 1"

    def __init__(
        self, judge: VideoJudgeReward, *, fps: float | None, dimension: str, loss_weight: float | None
    ) -> None:
        """Wrap a judge; `create_judge` does it by name.

        Args:
            judge: the judge.
            fps: frame rate in Hz of tensors.
            dimension: dimension of the score.
            loss_weight: factor of the loss; None for a metric.
        """
        super().__init__()
        self.judge, self.fps, self.dimension = judge, fps, dimension
        self.as_loss = loss_weight is not None
        weights = {dimension: 1.0}
        self._loss = None if loss_weight is None else judge.as_loss(scale=-loss_weight, weights=weights)

    def forward(
        self,
        target: Tensor | str | Path | Sequence[Any],
        ref: None = None,
        *,
        prompts: str | Sequence[str | None] | None = None,
    ) -> Tensor:
        """Return the scores [B], NaN and a warning with the reason where one is missing; or the loss.

        Args:
            target: videos [B, T, C, H, W] or stills [B, C, H, W] in [0, 1], a path, or any sequence that a judge accepts.
            ref: None; the metric needs no reference.
            prompts: one per video, for text alignment.

        Returns:
            [B] without gradient; with `as_loss`, a scalar with gradient.

        Raises:
            ValueError: a reference.
            RuntimeError: with `as_loss`, a score is missing.
        """
        if ref is not None:
            raise ValueError("ref must be None: the judge needs no reference (metric_mode is 'NR')")
        videos = with_time(target) if isinstance(target, Tensor) else target
        if isinstance(videos, (str, Path)):
            videos = [videos]
        if self._loss is not None:
            return self._loss(videos, prompts, fps=self.fps)[0]
        weights = {self.dimension: 1.0}
        out = self.judge(videos, prompts, fps=self.fps, weights=weights)
        scores_of(out, weights).checked("nan")
        return out.rewards
