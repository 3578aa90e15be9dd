"""For hosts that ask for one clip at a time from many threads: what waits for the judge is scored together."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from reward_model.hosts.core import HostScores, JudgeLike, load_judge, score


@dataclass(eq=False)
class _Request:
    """One clip and its prompt; `scores` once they are there."""

    video: Any
    prompt: str | None
    scores: HostScores | None = None


class Desk:
    """Where requests wait for one judge: whoever has the turn takes along all that wait."""

    def __init__(self, judge: JudgeLike, fps: float | None, weights: Mapping[str, float] | None, device: str | None):
        """Load the judge; `desk_of` is the usual way."""
        self._judge, self._fps, self._weights = load_judge(judge, device=device), fps, weights
        self._waiting: deque[_Request] = deque()
        self._turn = Lock()

    def ask(self, video: Any, prompt: str | None) -> HostScores:
        """Return the scores of one clip, after waiting for the judge.

        Args:
            video: tensor [T, C, H, W], path or bytes.
            prompt: its prompt; None where there is none.

        Returns:
            Scores of one row.
        """
        request = _Request(video, prompt)
        self._waiting.append(request)
        with self._turn:
            if request.scores is None:
                self._serve(request)
        assert request.scores is not None
        return request.scores

    def _serve(self, first: _Request) -> None:
        """Score a request with all that wait; those that go without then have turns of their own."""
        batch = {first: None}
        while self._waiting:
            batch[self._waiting.popleft()] = None
        try:
            self._score(list(batch))
        except ValueError:
            if len(batch) == 1:
                raise
            self._score([first])  # somebody's clip is wrong, and may not fail its neighbours

    def _score(self, requests: list[_Request]) -> None:
        videos, prompts = [one.video for one in requests], [one.prompt for one in requests]
        found = score(self._judge, videos, prompts, fps=self._fps, weights=self._weights)
        for row, one in enumerate(requests):
            parts = {name: [values[row]] for name, values in found.parts.items()}
            one.scores = HostScores([found.rewards[row]], parts, [found.reasons[row]])


def desk_of(judge: JudgeLike, *, fps: float | None, weights: Mapping[str, float] | None, device: str | None) -> Desk:
    """Return the desk for these settings, always the same one.

    Args:
        judge: a judge, or where it is.
        fps: frame rate in Hz of tensors.
        weights: dimension -> weight of the reward; None for overall.
        device: where to load the judge.

    Returns:
        The desk.
    """
    return _desk(judge, fps, None if weights is None else tuple(sorted(weights.items())), device)


@functools.cache
def _desk(
    judge: JudgeLike, fps: float | None, weights: tuple[tuple[str, float], ...] | None, device: str | None
) -> Desk:
    return Desk(judge, fps, None if weights is None else dict(weights), device)
