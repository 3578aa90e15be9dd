"""Keeps the weights of a stage that do best on held-out clips, and ends the stage when later ones stay behind.

Both follow correlations with the labels and pair accuracies, not rewards or exact hits: a reward can rise by its form alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from statistics import mean

from torch import Tensor, nn

log = logging.getLogger(__name__)


def held_out_score(metrics: Mapping[str, float]) -> float:
    """Return the mean of a held-out table's rank correlations and accuracies; -inf where it has neither.

    A correlation that is not defined, as of a judge whose answers cannot be read yet, counts as -1, an accuracy as 0.
    """
    scores = []
    for name, value in metrics.items():
        if "srcc_" in name:
            scores.append(-1.0 if math.isnan(value) else value)
        elif name in ("compare_accuracy", "ask_accuracy"):
            scores.append(0.0 if math.isnan(value) else value)
    return mean(scores) if scores else -math.inf


class BestWeights:
    """Measures every few steps and remembers the weights that scored highest; the earlier ones on a tie."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        measure: Callable[[], Mapping[str, float]],
        *,
        every: int,
        patience: int = 0,
    ) -> None:
        """Measure the weights as they are: a stage that only harms then changes nothing.

        Args:
            parameters: trained.
            measure: returns the held-out table of the weights in place.
            every: optimiser steps between two measurements.
            patience: measurements without a better score after which training should stop; 0 never stops it.

        Raises:
            ValueError: `every` is below 1.
        """
        if every < 1 or patience < 0:
            raise ValueError(f"every must be >= 1 and patience >= 0, got {every} and {patience}")
        self._parameters = list(parameters)
        self._measure, self._every, self._patience = measure, every, patience
        self.step, self.score, self._behind = 0, held_out_score(measure()), 0
        self._weights = self._copy()

    def after_step(self, num_steps: int) -> bool:
        """Look at the weights after `num_steps` steps, if it is time; return whether training should stop."""
        if num_steps % self._every:
            return False
        score = held_out_score(self._measure())
        if score > self.score:
            self.step, self.score, self._behind = num_steps, score, 0
            self._weights = self._copy()
        else:
            self._behind += 1
        return 0 < self._patience <= self._behind

    def restore(self) -> None:
        """Put the best weights in place; the last stay where no measurement gave a score."""
        if self.score == -math.inf:
            log.warning("no measurement gave a correlation or an accuracy: the last weights are kept, not the best")
            return
        for parameter, value in zip(self._parameters, self._weights, strict=True):
            parameter.data.copy_(value)

    def _copy(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._parameters]
