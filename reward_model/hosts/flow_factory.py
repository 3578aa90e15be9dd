"""Flow-Factory: a pointwise and a groupwise reward model.

The host recognises the kind by its base class, so a module of your own combines the two; the host's YAML names it:

    from flow_factory.rewards.abc import GroupwiseRewardModel, PointwiseRewardModel
    from reward_model.hosts.flow_factory import GroupwiseJudge, PointwiseJudge

    class VideoJudge(PointwiseJudge, PointwiseRewardModel): ...
    class VideoRank(GroupwiseJudge, GroupwiseRewardModel): ...

    rewards: [{name: judge, reward_model: my_rewards.VideoJudge, judge: path/to/judge, fps: 16, dtype: bfloat16}]

The host has no value for a missing reward, and a NaN would spread over the batch, so a missing reward raises.

Source: X-GenGroup/Flow-Factory, src/flow_factory/rewards/{abc,reward_processor}.py, commit a0b2bc5.

Shapes: B videos (of one group for the groupwise model), T frames, C = 3 channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from reward_model.hosts.core import load_judge, report_missing, score

COMPARATOR = "comparator"


@dataclass(frozen=True)
class RewardModelOutput:
    """Rewards of B videos and the scores of each dimension, under the names that the host reads."""

    rewards: list[float]
    extra_info: dict[str, list[float]]


class _FlowFactoryJudge:
    """Base of both models; precedes the host's base class, whose constructor sets `device` and `dtype`."""

    required_fields = ("prompt", "video")
    use_tensor_inputs = True
    device: Any
    dtype: Any

    def __init__(self, config: Any, accelerator: Any) -> None:
        """Load the judge.

        Args:
            config: the host's RewardArguments, whose `extra_kwargs` are judge, fps and optionally weights.
            accelerator: the host's accelerator.

        Raises:
            ValueError: unknown or missing extra settings.
        """
        super().__init__(config, accelerator)  # type: ignore[call-arg]  # the host's base class takes both
        settings: Mapping[str, Any] = config.extra_kwargs
        unknown, missing = set(settings) - {"judge", "fps", "weights"}, {"judge", "fps"} - set(settings)
        if unknown or missing:
            raise ValueError(
                f"a judge's entry in rewards takes judge, fps and optionally weights; missing {sorted(missing)}, "
                f"unknown {sorted(unknown)}"
            )
        self.fps: float = settings["fps"]
        self.weights: Mapping[str, float] | None = settings.get("weights")
        self.model = load_judge(settings["judge"], device=self.device, dtype=self.dtype)


class PointwiseJudge(_FlowFactoryJudge):
    """Scores each video on its own."""

    def __call__(self, prompt: Sequence[str], video: Sequence[Tensor] | None = None) -> RewardModelOutput:
        """Return the rewards of B videos.

        Args:
            prompt: one per video.
            video: B tensors [T, C, H, W] in [0, 1].

        Returns:
            Rewards and the scores of each dimension.

        Raises:
            ValueError: samples without video.
            RuntimeError: a reward is missing.
        """
        output = score(self.model, _videos(video), list(prompt), fps=self.fps, weights=self.weights).or_raise()
        return RewardModelOutput(output.rewards, output.scores)


class GroupwiseJudge(_FlowFactoryJudge):
    """Ranks the videos of one prompt by the judge's comparator, with at most N log2 N comparisons."""

    def __init__(self, config: Any, accelerator: Any) -> None:
        """Load the judge in its comparator role; see `PointwiseJudge`."""
        super().__init__(config, accelerator)
        if self.weights is not None:
            raise ValueError("weights go with the pointwise model: a comparison rates the whole video")
        self.model = self.model.with_role(COMPARATOR)

    def __call__(self, prompt: Sequence[str], video: Sequence[Tensor] | None = None) -> RewardModelOutput:
        """Return the rewards of a group: 1 for the best, 0 for the worst, evenly spaced.

        Args:
            prompt: the same prompt for all.
            video: tensors [T, C, H, W] in [0, 1].

        Returns:
            Rewards and places (0 for the best), in the order of the samples.

        Raises:
            ValueError: samples without video, a group of one, or of several prompts.
            RuntimeError: a video cannot be judged, or the judge does not answer comparisons.
        """
        videos = _videos(video)
        if len(videos) < 2 or len(set(prompt)) != 1:
            raise ValueError(
                f"a group must have two or more videos of one prompt, got {len(videos)} of {len(set(prompt))} prompts"
            )
        ranking = self.model.rank(videos, prompt[0], fps=self.fps)
        report_missing(ranking.reasons, "raise", "Places in a group need all its videos.")
        order = ranking.order
        places = [float(order.index(index)) for index in range(len(videos))]
        return RewardModelOutput([1 - place / (len(videos) - 1) for place in places], {"place": places})


def _videos(video: Sequence[Tensor] | None) -> list[Tensor]:
    if video is None:
        raise ValueError("the samples have no video: this reward needs a video generator, not an image generator")
    return list(video)
