"""UniRL: a reward backend inside the trainer, with a gradient to the frames, or a scorer of its reward service.

In the recipe; `media_range` is for differentiable rewards only (signed for Wan's decoder, unit for SD3's):

    reward:
      _target_: unirl.reward.service.RewardService
      backend:
        _target_: reward_model.hosts.unirl.JudgeBackend
        judge: path/to/judge
        fps: 16
        media_range: signed

The reward service's workers import only the modules that its registry names. So a new file
reward_service/scorers/video_judge.py holds

    from reward_model.hosts.unirl import JudgeScorer
    from reward_service.scorers.base import BaseScorer
    from reward_service.scorers.registry import register

    class VideoJudgeScorer(JudgeScorer, BaseScorer): ...

    register("video_judge", VideoJudgeScorer)

and SCORER_MODULES in reward_service/scorers/registry.py gets the entry

    "video_judge": "reward_service.scorers.video_judge",

and the service's configuration names the scorer; the requirements file installs this package for the worker:

    rewards:
      - {name: video_judge, scorer: video_judge, runtime_env: envs/video_judge.txt, params: {judge: path/to/judge}}

A missing score is NaN with `successes=False` and the reason, and the trainer stops the step; a differentiable call raises.

Source: Tencent-Hunyuan/UniRL, unirl/reward/{base,service}.py, unirl/types/reward.py and
unirl-reward-service/reward_service/{scorers,workers}, commits 1a7b501 and 104aad6; experimental/refl, commit 13fe135.

Shapes: B videos, C = 3 channels, T frames, H, W pixels.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from reward_model.hosts.core import JudgeLike, from_signed, load_judge, score, scores_of
from reward_model.records import DIMENSIONS

LAYOUT = "BCTHW"

PromptSource = Literal["original", "generation"]
"""The user's prompt, or the one that the generator was given, which a language model may have rewritten."""

MediaRange = Literal["unit", "signed"]
"""Range of decoded frames: [0, 1] or [-1, 1]."""


class PromptTexts(Protocol):
    """The host's texts."""

    @property
    def texts(self) -> Sequence[str]:
        """Return B texts."""


class RewardRequest(Protocol):
    """Fields of the host's request that are read: prompts by their source, and B videos [C, T, H, W] in [0, 1] or uint8."""

    @property
    def original_prompt(self) -> PromptTexts | None:
        """Return the user's prompts."""

    @property
    def generation_prompt(self) -> PromptTexts | None:
        """Return the prompts that the generator was given."""

    @property
    def videos(self) -> Sequence[Tensor] | None:
        """Return B videos, None if the request has none."""


@runtime_checkable
class SinglePromptRequest(Protocol):
    """Fields of the request of commit 1a7b501 that are read; it has one prompt per video."""

    @property
    def prompts(self) -> Sequence[str]:
        """Return B prompts, none if the request has no text."""

    @property
    def videos(self) -> Sequence[Tensor] | None:
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
    """The host's reward backend and differentiable reward, without importing either."""

    input_kind = "video"
    preferred_input_kind = "video"

    def __init__(
        self,
        judge: JudgeLike,
        fps: float,
        device: str | torch.device | None = None,
        weights: Mapping[str, float] | None = None,
        prompt_source: PromptSource = "generation",
        media_range: MediaRange | None = None,
    ) -> None:
        """Load the judge.

        Args:
            judge: a judge, or where to load it from.
            fps: frame rate in Hz of the videos.
            device: device to load it on, to which `onload` moves it back.
            weights: dimension -> weight of the reward; None for overall.
            prompt_source: prompt that the judge is told, where a request has two.
            media_range: range of the frames of a differentiable call, which no request states; required there.

        Raises:
            ValueError: an unknown prompt source or range.
        """
        if prompt_source not in ("original", "generation"):
            raise ValueError(f"prompt_source must be 'original' or 'generation', got {prompt_source!r}")
        if media_range not in (None, "unit", "signed"):
            raise ValueError(f"media_range must be 'unit' ([0, 1]) or 'signed' ([-1, 1]), got {media_range!r}")
        self.model_name = "video_judge"
        self.judge = load_judge(judge, device=device)
        self.fps, self.weights = fps, weights
        self.prompt_source, self.media_range = prompt_source, media_range
        self._home = self.judge.judge.device

    def get_model_name(self) -> str:
        """Return the name under which the host logs."""
        return self.model_name

    def is_available(self) -> bool:
        """Return True: the judge is loaded."""
        return True

    def covers_prompt_video(self) -> bool:
        """Return whether the reward rises with the agreement of prompt and video, without which the host refuses to train."""
        return self.weights is None or any(self.weights.get(name, 0) > 0 for name in ("text_alignment", "overall"))

    def compute_rewards(self, request: RewardRequest | SinglePromptRequest) -> RewardResponse:
        """Score a request.

        Args:
            request: the host's request.

        Returns:
            Rewards and the scores of each dimension; NaN, `successes` False and the reason where a reward is missing.

        Raises:
            ValueError: a request without videos or without the selected prompts.
        """
        start = time.perf_counter()
        videos = request.videos  # the host copies them at each reading
        if not videos:
            raise ValueError("the request has no videos; this backend needs a video generator")
        prompts = self._prompts(request)
        output = score(self.judge, videos, prompts, fps=self.fps, layout=LAYOUT, weights=self.weights)
        return RewardResponse(
            rewards=output.rewards,
            component_rewards=output.scores,
            successes=[not reason for reason in output.reasons],
            errors=[reason or None for reason in output.reasons],
            compute_time=time.perf_counter() - start,
        )

    def compute_rewards_differentiable(
        self, media_tensor: Tensor, prompts: Sequence[str], records: Sequence[Mapping[str, Any] | None] | None = None
    ) -> Tensor:
        """Score decoded frames with gradient.

        Args:
            media_tensor: videos [B, C, T, H, W] or stills [B, C, H, W] in `media_range`.
            prompts: one per video.
            records: not used.

        Returns:
            Rewards [B] with gradient to the frames.

        Raises:
            ValueError: no `media_range`, signed frames outside it, or media that carry no gradient.
            RuntimeError: a reward is missing.
        """
        if self.media_range is None:
            raise ValueError(
                "media_range is required for a differentiable reward: 'unit' ([0, 1]) or 'signed' ([-1, 1])"
            )
        if media_tensor.ndim not in (4, 5) or not media_tensor.is_floating_point():
            kind = f"{media_tensor.dtype} {list(media_tensor.shape)}"
            raise ValueError(f"media_tensor must be float [B, C, T, H, W] or [B, C, H, W], got {kind}")
        clips = media_tensor if media_tensor.ndim == 5 else media_tensor.unsqueeze(2)
        videos = self._from_signed(clips) if self.media_range == "signed" else clips
        out = self.judge(videos, list(prompts), fps=self.fps, layout=LAYOUT, weights=self.weights, differentiable=True)
        scores_of(out, self.weights).or_raise("The step must not go on: its gradient would not be finite.")
        return out.rewards

    def _prompts(self, request: RewardRequest | SinglePromptRequest) -> list[str]:
        if isinstance(request, SinglePromptRequest):
            if self.prompt_source != "generation":
                raise ValueError(f"prompt_source={self.prompt_source!r} needs a UniRL whose requests have two prompts")
            return list(request.prompts)
        prompt = request.original_prompt if self.prompt_source == "original" else request.generation_prompt
        if prompt is None:
            raise ValueError(
                f"the request has no {self.prompt_source} prompt; check prompt_source and the sample's texts"
            )
        return list(prompt.texts)

    @staticmethod
    def _from_signed(clips: Tensor) -> Tensor:
        videos = from_signed(clips)
        if clips.detach().amin() >= 0:
            warnings.warn(
                "media_range is 'signed', but no pixel is below 0: if the frames lie in [0, 1], say media_range: unit",
                stacklevel=3,
            )
        return videos

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
    input_kind = "video"
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
