"""A guard against missing scores: a run that learns from few of its samples must not look like one that learns from all."""

from __future__ import annotations

from collections.abc import Mapping

from generator_loop.guards.monitors import commonest_reason
from generator_loop.records import Rollout, Scored


class MissingScores:
    """Objects when more than a share of the samples has no score, and says the judge's most frequent reason."""

    def __init__(self, max_fraction: float) -> None:
        """Set the limit.

        Args:
            max_fraction: share of missing scores that passes.
        """
        self.max_fraction, self._reason = max_fraction, ""

    def measure(self, samples: Rollout, scored: Scored) -> Mapping[str, float]:
        """Remember this process's reasons; the share of valid scores is among the common statistics."""
        self._reason = commonest_reason(scored.reasons)
        return {}

    def check(self, now: Mapping[str, float], first: Mapping[str, float]) -> str:
        """Return a sentence if too many scores are missing; see `Guard.check`."""
        missing = 1 - now.get("valid_fraction", 1.0)
        if not missing > self.max_fraction:
            return ""
        return f"{missing:.0%} of the samples have no score and teach nothing. {self._reason}".strip()
