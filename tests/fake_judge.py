"""A judge that needs no weights: scores are looked up by path, or read off the pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from reward_model.records import (
    DIMENSIONS,
    Comparison,
    Explanation,
    FramePlan,
    Ranking,
    RewardOutput,
    Video,
    VideoError,
)

PLAN = FramePlan((0, 4), (0.0, 0.5), ("slow", "slow"), 2.0)


class FakeJudge:
    """Scores each video by one number: its mean pixel, or what `known` says of its path; unknown paths are unreadable."""

    def __init__(self, known: Mapping[str, float] | None = None) -> None:
        self.known = dict(known or {})
        self.calls: list[tuple[list[object], list[str | None], str]] = []

    def value(self, video: object) -> float | None:
        """Return the score of a video, None for one that cannot be read."""
        if isinstance(video, Video):
            return float(video.frames.mean())
        return self.known.get(Path(str(video)).name)

    def __call__(
        self,
        videos: Sequence[object],
        prompts: Sequence[str | None],
        *,
        readout: str = "level",
        num_samples: int = 1,
        normalize: str = "unit",
        batch_size: int = 16,
    ) -> RewardOutput:
        """Score videos; text alignment needs a prompt."""
        self.calls.append((list(videos), list(prompts), readout))
        values = [self.value(video) for video in videos]
        reasons = {
            name: [
                "damaged: cut" if value is None else "no prompt" if name == "text_alignment" and not prompt else ""
                for value, prompt in zip(values, prompts, strict=True)
            ]
            for name in DIMENSIONS
        }
        scores = {
            name: torch.tensor([math.nan if why or v is None else v for v, why in zip(values, whys, strict=True)])
            for name, whys in reasons.items()
        }
        return RewardOutput(
            rewards=scores["overall"],
            scores=scores,
            std={name: torch.full((len(values),), 0.1) for name in DIMENSIONS},
            level_probs={},
            level_mass={},
            valid={name: torch.tensor([not why for why in whys]) for name, whys in reasons.items()},
            reasons=reasons,
            texts=["because"] * len(values) if readout == "reason" else None,
            frame_plan=[None if value is None else PLAN for value in values],
            overall_from=[("overall",) if prompt else ("visual_quality", "motion_quality") for prompt in prompts],
        )

    def compare(
        self,
        a: Sequence[object],
        b: Sequence[object],
        prompts: Sequence[str | None],
        *,
        swap: bool = True,
        batch_size: int = 16,
    ) -> Comparison:
        """Prefer the higher number, by the difference."""
        pairs = [(self.value(left), self.value(right)) for left, right in zip(a, b, strict=True)]
        good = [left is not None and right is not None for left, right in pairs]
        margin = torch.tensor(
            [math.nan if left is None or right is None else max(-1.0, min(1.0, left - right)) for left, right in pairs]
        )
        return Comparison(
            p_first=(1 + margin) / 2,
            p_tie=margin.abs() * 0,
            margin=margin,
            valid=torch.tensor(good),
            reasons=["" if ok else "damaged: cut" for ok in good],
            consistent=torch.tensor(good),
        )

    def rank(self, group: Sequence[object], prompt: str | None = None, *, batch_size: int = 16) -> Ranking:
        """Order by the number, highest first."""
        values = [self.value(video) for video in group]
        readable = [place for place, value in enumerate(values) if value is not None]
        order = tuple(sorted(readable, key=lambda place: -(values[place] or 0.0)))
        return Ranking(order, ["" if value is not None else "damaged: cut" for value in values], len(order))

    def explain(self, video: object, prompt: str | None = None) -> Explanation:
        """Explain with fixed words."""
        if self.value(video) is None:
            raise VideoError("damaged: cut")
        return Explanation(
            text="<think>It flickers.</think>",
            quality={"motion_quality": 0.25},
            levels={"motion_quality": "poor"},
            labels={"motion_quality": ("flicker",)},
            saliency={"motion_quality": torch.tensor([0.25, 0.75])},
            reason="",
        )
