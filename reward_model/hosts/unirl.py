"""UniRL: a reward backend inside the trainer, or a scorer of its reward service.

In a module of your own, which the recipe's `_target_` names, or in the service's `scorers`:

    from reward_model.hosts.unirl import JudgeBackend, JudgeScorer

    class VideoJudge(JudgeBackend, RewardBackend): ...     # reward: {_target_: my_rewards.VideoJudge, judge: .., fps: 16}
    class VideoJudgeScorer(JudgeScorer, BaseScorer): ...   # register("video_judge", VideoJudgeScorer)

A missing score is NaN with `successes=False` and its reason, on which the trainer stops the step.

Source: Tencent-Hunyuan/UniRL, unirl/reward/{base,service}.py, unirl/types/reward.py and
unirl-reward-service/reward_service/scorers/base.py, commit 1a7b501.

Shapes: B videos, C = 3 channels, T frames, H, W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from reward_model.hosts.core import JudgeLike, load_judge, score
from reward_model.records import DIMENSIONS


class RewardRequest(Protocol):
    """What is read of the host's request: B prompts and B videos [C, T, H, W] in [0, 1] or uint8."""

    @property
    def prompts(self) -> list[str]:
        """Return B prompts."""

    @property
    def videos(self) -> list[Tensor] | None:
        """Return B videos, None where the request has none."""


class ScoreItem(Protocol):
    """What is read of an item of the service: its turns (text, image), and mp4 bytes or a path for each."""

    @property
    def history(self) -> Sequence[tuple[str, Any]]:
        """Return the turns, each (kind, content)."""

    @property
    def videos(self) -> Sequence[bytes | str | None] | None:
        """Return mp4 bytes or a path for each turn, None where it has none."""


@dataclass(frozen=True)
class RewardResponse:
    """Rewards of B videos, with the names that the host reads."""

    rewards: list[float]
    component_rewards: dict[str, list[float]]
    successes: list[bool]
    errors: list[str | None]
    compute_time: float


class JudgeBackend:
    """The host's `RewardBackend` without importing it: usable as it is, or before it in a list of bases."""

    input_kind = "video"
    preferred_input_kind = "video"

    def __init__(
        self,
        judge: JudgeLike,
        fps: float,
        device: str | torch.device | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Load the judge.

        Args:
            judge: a judge, or where it is.
            fps: frame rate in Hz of the videos.
            device: where to load it, and where `onload` puts it back.
            weights: dimension -> weight of the reward; None for overall.
        """
        self.model_name = "video_judge"
        self.judge = load_judge(judge, device=device)
        self.fps, self.weights = fps, weights
        self._home = self.judge.judge.device

    def get_model_name(self) -> str:
        """Return the name under which the host logs."""
        return self.model_name

    def is_available(self) -> bool:
        """Say that the judge is loaded."""
        return True

    def compute_rewards(self, request: RewardRequest) -> RewardResponse:
        """Score a request.

        Args:
            request: the host's.

        Returns:
            Rewards and each dimension's scores; NaN, `successes` False and the reason where a reward could not be had.

        Raises:
            ValueError: a request without videos, or frames of another range.
        """
        if not request.videos:
            raise ValueError("the request has no videos; this backend needs a generator of videos")
        start = time.perf_counter()
        found = score(self.judge, request.videos, request.prompts, fps=self.fps, layout="BCTHW", weights=self.weights)
        return RewardResponse(
            rewards=found.rewards,
            component_rewards=found.parts,
            successes=[not reason for reason in found.reasons],
            errors=[reason or None for reason in found.reasons],
            compute_time=time.perf_counter() - start,
        )

    def offload(self) -> None:
        """Move the judge to the CPU, for all who share it."""
        self.judge.to("cpu")

    def onload(self) -> None:
        """Move the judge back to where it was loaded."""
        self.judge.to(self._home)

    def dispose(self) -> None:
        """Let go of nothing: the judge is shared."""


class JudgeScorer:
    """The service's `BaseScorer` without importing it; overall comes first, which is what the trainer takes by default."""

    name = "video_judge"
    sub_metric_names = tuple(reversed(DIMENSIONS))

    def __init__(self, judge: JudgeLike, device: str | torch.device | None = None, dtype: str = "auto") -> None:
        """Load the judge.

        Args:
            judge: a judge, or where it is.
            device: where to load it.
            dtype: of the weights.
        """
        self.judge = load_judge(judge, device=device, dtype=dtype)

    def score(self, items: Sequence[ScoreItem]) -> list[dict[str, float]]:
        """Score the video of each item's last turn against that turn's text.

        Args:
            items: any number.

        Returns:
            One dict each: dimension -> score in [0, 1], NaN where it could not be had.

        Raises:
            ValueError: an item without video.
        """
        videos = [item.videos[-1] if item.videos else None for item in items]
        lacking = [row for row, video in enumerate(videos) if video is None]
        if lacking:
            raise ValueError(f"video_judge needs a video on the last turn of every item; items {lacking} have none")
        found = score(self.judge, [v for v in videos if v is not None], [i.history[-1][0] for i in items], fps=None)
        names = [name for name in self.sub_metric_names if name in found.parts]
        return [{name: found.parts[name][row] for name in names} for row in range(len(items))]

    def close(self) -> None:
        """Let go of nothing: the judge is shared."""
