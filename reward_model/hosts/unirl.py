"""UniRL: a reward backend inside the trainer, or a scorer of its reward service.

In a module of your own, named by the recipe's `_target_`, or in the service's `scorers`:

    from reward_model.hosts.unirl import JudgeBackend, JudgeScorer

    class VideoJudge(JudgeBackend, RewardBackend): ...     # reward: {_target_: my_rewards.VideoJudge, judge: .., fps: 16}
    class VideoJudgeScorer(JudgeScorer, BaseScorer): ...   # register("video_judge", VideoJudgeScorer)

A missing score is NaN with `successes=False` and the reason; the trainer then stops the step.

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
    """Fields of the host's request that are read: B prompts and B videos [C, T, H, W] in [0, 1] or uint8."""

    @property
    def prompts(self) -> list[str]:
        """Return B prompts."""

    @property
    def videos(self) -> list[Tensor] | None:
        """Return B videos, None if the request has none."""


class ScoreItem(Protocol):
    """Fields of an item of the service that are read: its turns (text, image), and the video of each turn."""

    @property
    def history(self) -> Sequence[tuple[str, Any]]:
        """Return the turns, each (text, image)."""

    @property
    def videos(self) -> Sequence[bytes | str | None] | None:
        """Return mp4 bytes or a path for each turn, None for a turn without video."""


@dataclass(frozen=True)
class RewardResponse:
    """Rewards of B videos, under the names that the host reads."""

    rewards: list[float]
    component_rewards: dict[str, list[float]]
    successes: list[bool]
    errors: list[str | None]
    compute_time: float


class JudgeBackend:
    """The host's `RewardBackend` without importing it; use it alone, or before `RewardBackend` in a list of bases."""

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
            judge: a judge, or where to load it from.
            fps: frame rate in Hz of the videos.
            device: device to load it on, to which `onload` moves it back.
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
        """Return True: the judge is loaded."""
        return True

    def compute_rewards(self, request: RewardRequest) -> RewardResponse:
        """Score a request.

        Args:
            request: the host's request.

        Returns:
            Rewards and the scores of each dimension; NaN, `successes` False and the reason where a reward is missing.

        Raises:
            ValueError: a request without videos, or frames outside the range.
        """
        if not request.videos:
            raise ValueError("the request has no videos; this backend needs a video generator")
        start = time.perf_counter()
        output = score(self.judge, request.videos, request.prompts, fps=self.fps, layout="BCTHW", weights=self.weights)
        return RewardResponse(
            rewards=output.rewards,
            component_rewards=output.scores,
            successes=[not reason for reason in output.reasons],
            errors=[reason or None for reason in output.reasons],
            compute_time=time.perf_counter() - start,
        )

    def offload(self) -> None:
        """Move the judge to the CPU, for every user of the shared judge."""
        self.judge.to("cpu")

    def onload(self) -> None:
        """Move the judge back to the device that it was loaded on."""
        self.judge.to(self._home)

    def dispose(self) -> None:
        """Do nothing: the judge is shared."""


class JudgeScorer:
    """The service's `BaseScorer` without importing it; overall comes first because the trainer takes the first by default."""

    name = "video_judge"
    sub_metric_names = tuple(reversed(DIMENSIONS))

    def __init__(self, judge: JudgeLike, device: str | torch.device | None = None, dtype: str = "auto") -> None:
        """Load the judge.

        Args:
            judge: a judge, or where to load it from.
            device: device to load it on.
            dtype: dtype of the weights.
        """
        self.judge = load_judge(judge, device=device, dtype=dtype)

    def score(self, items: Sequence[ScoreItem]) -> list[dict[str, float]]:
        """Score the video of each item's last turn against the text of that turn.

        Args:
            items: any number of items.

        Returns:
            One dict per item: dimension -> score in [0, 1], NaN where it is missing.

        Raises:
            ValueError: an item without video.
        """
        videos = [item.videos[-1] if item.videos else None for item in items]
        lacking = [index for index, video in enumerate(videos) if video is None]
        if lacking:
            raise ValueError(f"video_judge needs a video on the last turn of every item; items {lacking} have none")
        output = score(self.judge, [v for v in videos if v is not None], [i.history[-1][0] for i in items], fps=None)
        names = [name for name in self.sub_metric_names if name in output.scores]
        return [{name: output.scores[name][index] for name in names} for index in range(len(items))]

    def close(self) -> None:
        """Do nothing: the judge is shared."""
