"""Micro-batching for hosts that score one clip per call from many threads: queued clips are scored together."""

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
    """One clip and its prompt; `scores` is set once they are computed."""

    video: Any
    prompt: str | None
    scores: HostScores | None = None


class MicroBatcher:
    """Queue of clips for one judge: the thread holding the lock scores every queued clip in one batch."""

    def __init__(self, judge: JudgeLike, fps: float | None, weights: Mapping[str, float] | None, device: str | None):
        """Load the judge; `shared_micro_batcher` returns a shared instance.

        Args:
            judge: a judge, or where to load it from.
            fps: frame rate in Hz of tensors.
            weights: dimension -> weight of the reward; None for overall.
            device: device to load the judge on.
        """
        self._judge, self._fps, self._weights = load_judge(judge, device=device), fps, weights
        self._queue: deque[_Request] = deque()
        self._lock = Lock()

    @property
    def num_queued(self) -> int:
        """Number of clips that no batch has taken yet."""
        return len(self._queue)

    def score(self, video: Any, prompt: str | None) -> HostScores:
        """Score one clip; blocks until the judge has answered.

        Args:
            video: tensor [T, C, H, W], path or bytes.
            prompt: its prompt; None where there is none.

        Returns:
            Scores of one clip.
        """
        request = _Request(video, prompt)
        self._queue.append(request)
        with self._lock:
            if request.scores is None:
                self._score_queue(request)
        assert request.scores is not None
        return request.scores

    def _score_queue(self, first: _Request) -> None:
        """Score `first` with all queued requests in one batch; if that fails, score it alone, and the rest retry."""
        batch = {first: None}
        while self._queue:
            batch[self._queue.popleft()] = None
        try:
            self._score_batch(list(batch))
        except ValueError:
            if len(batch) == 1:
                raise
            self._score_batch([first])  # one invalid clip must not fail the others

    def _score_batch(self, requests: list[_Request]) -> None:
        videos, prompts = [one.video for one in requests], [one.prompt for one in requests]
        batch = score(self._judge, videos, prompts, fps=self._fps, weights=self._weights)
        for index, one in enumerate(requests):
            scores = {name: [values[index]] for name, values in batch.scores.items()}
            one.scores = HostScores([batch.rewards[index]], scores, [batch.reasons[index]])


def shared_micro_batcher(
    judge: JudgeLike, *, fps: float | None, weights: Mapping[str, float] | None, device: str | None
) -> MicroBatcher:
    """Return the micro-batcher of these settings; the same settings give the same object.

    Args:
        judge: a judge, or where to load it from.
        fps: frame rate in Hz of tensors.
        weights: dimension -> weight of the reward; None for overall.
        device: device to load the judge on.

    Returns:
        The micro-batcher.
    """
    return _cached(judge, fps, None if weights is None else tuple(sorted(weights.items())), device)


@functools.cache
def _cached(
    judge: JudgeLike, fps: float | None, weights: tuple[tuple[str, float], ...] | None, device: str | None
) -> MicroBatcher:
    return MicroBatcher(judge, fps, None if weights is None else dict(weights), device)
