"""A guard against drift: a statistic must stay within factors of its first value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from generator_loop.records import Rollout, Scored


@dataclass(frozen=True)
class Drift:
    """Objects when a statistic of `guards.monitors` leaves [low, high] times its first value."""

    statistic: str
    low: float
    high: float

    def measure(self, samples: Rollout, scored: Scored) -> Mapping[str, float]:
        """Return nothing: the statistic is among the common ones."""
        return {}

    def check(self, now: Mapping[str, float], first: Mapping[str, float]) -> str:
        """Return a sentence if the statistic left its limits; see `Guard.check`."""
        value, start = now[self.statistic], first.get(self.statistic, 0.0)
        if start <= 0 or self.low * start <= value <= self.high * start:
            return ""
        return f"{self.statistic} is {value:.3g}, {value / start:.2f} of its first value: look at the samples"
