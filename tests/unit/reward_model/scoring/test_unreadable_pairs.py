"""Pairs of which one side is unreadable: the judge is not asked about them, and the reason is kept."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from reward_model.scoring.compare import compare_clips
from tests.tiny_judge import make_clip


class SilentJudge:
    """A judge that may not be asked."""

    device = torch.device("cpu")

    def use_role(self, role: str | None) -> Any:
        """Return a context."""
        return nullcontext()


def test_a_pair_with_an_unreadable_side_is_not_shown_to_the_judge() -> None:
    left, right = [make_clip(), "left", "one"], ["right", make_clip(), "two"]
    for swap in (False, True):
        outcome = compare_clips(SilentJudge(), None, left, right, [None] * 3, swap=swap, batch_size=2)  # type: ignore[arg-type]
        assert list(outcome.reasons) == ["right", "left", "one"]
        assert not outcome.valid.any() and bool(outcome.margin.isnan().all())
