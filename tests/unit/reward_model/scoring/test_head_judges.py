"""Judges that score by a head: which clips they are shown, and the calls that they refuse."""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reward_model.records import Clip
from reward_model.scoring.score import open_assembler
from reward_model.scoring.video_align import align_scores
from tests.tiny_judge import make_clip


class HeadJudge:
    """A judge whose head says 1, 2 and 3 of every clip that it is shown."""

    def __init__(self) -> None:
        config = SimpleNamespace(dimensions=("visual_quality", "motion_quality", "text_alignment"))
        self.head = SimpleNamespace(config=config, normalise=lambda values: values - 1)
        self.shown: list[tuple[Clip, str]] = []

    def use_role(self, role: str | None) -> Any:
        """Return a context."""
        return nullcontext()

    pixel_cap = use_role

    def head_scores(self, clips: list[Clip], prompts: list[str]) -> torch.Tensor:
        """Return the numbers."""
        assert isinstance(clips[0], Clip) and isinstance(prompts[0], str)
        self.shown.append((clips[0], prompts[0]))
        return torch.tensor([[1.0, 2.0, 3.0]])


@pytest.mark.parametrize(("use_norm", "expected"), [(False, [1, 2, 3, 6]), (True, [0, 1, 2, 3])])
def test_a_head_is_shown_readable_clips_with_a_prompt_alone(use_norm: bool, expected: list[float]) -> None:
    judge, clip = HeadJudge(), make_clip()
    clips, prompts = [clip, "unreadable", clip, "unreadable"], ["a dog", "a dog", None, None]
    scores = align_scores(judge, None, clips, prompts, max_pixels=None, use_norm=use_norm)  # type: ignore[arg-type]
    assert scores.reasons == ["", "unreadable", "no prompt", "unreadable"]
    assert scores.records[0] == dict(zip(("VQ", "MQ", "TA", "Overall"), expected, strict=True))
    for missing in scores.records[1:]:
        assert list(missing) == ["VQ", "MQ", "TA", "Overall"] and all(map(math.isnan, missing.values()))
    assert [prompt for _, prompt in judge.shown] == ["a dog"]


def test_a_judge_with_a_head_has_no_level_scores() -> None:
    with pytest.raises(ValueError, match="scores by a head at special tokens"):
        open_assembler(
            HeadJudge(),  # type: ignore[arg-type]
            None,
            1,
            dimensions=None,
            weights=None,
            readout="level",
            num_samples=1,
        )
