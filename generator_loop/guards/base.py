"""The contract of a guard, and the watch that asks all of them after each iteration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

from generator_loop.records import Rollout, Scored


class Guard(Protocol):
    """Watches one symptom of reward hacking."""

    def measure(self, samples: Rollout, scored: Scored) -> Mapping[str, float]:
        """Return the statistics that the guard adds to the log beside the common ones of `guards.monitors`.

        Args:
            samples: this process's groups of one iteration.
            scored: their rewards.

        Returns:
            Name to number; they are averaged over processes.
        """
        ...

    def check(self, now: Mapping[str, float], first: Mapping[str, float]) -> str:
        """Object to the samples, or not.

        Args:
            now: all logged statistics of the iteration, means over processes.
            first: those of the run's first iteration.

        Returns:
            One sentence, or "" where all is well.
        """
        ...


class Watch:
    """All guards of a run; it remembers the first iteration's statistics, from which drift is measured."""

    def __init__(self, guards: Mapping[str, Guard]) -> None:
        """Take the guards.

        Args:
            guards: by name.
        """
        self._guards = guards
        self.first: dict[str, float] = {}
        """Statistics of the first iteration; a checkpoint stores them."""

    def measure(self, samples: Rollout, scored: Scored) -> dict[str, float]:
        """Return the statistics of every guard."""
        return {
            name: value for guard in self._guards.values() for name, value in guard.measure(samples, scored).items()
        }

    def check(self, now: Mapping[str, float]) -> tuple[str, ...]:
        """Return one sentence for each guard that objects to the logged statistics `now`."""
        self.first = self.first or {name: value for name, value in now.items() if math.isfinite(value)}
        return tuple(filter(None, (guard.check(now, self.first) for guard in self._guards.values())))
