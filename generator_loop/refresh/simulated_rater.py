"""Preference pairs of a rater that a world simulates: siblings whose order the oracle tells, with some errors.

The siblings worth a label are those on which the judges of the run disagree most.

Shape legend: J judges, P pairs of siblings, G group size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from generator_loop.refresh.base import Candidate, PairSourceConfig, PairTools, preferred
from reward_model.records import VideoPair

CHANCE = "chance"
"""Name of the random number by which siblings are shown in no judge's order."""

MIN_SPREAD = 1e-6
"""Floor of a judge's deviation of margins."""


@dataclass(frozen=True, kw_only=True)
class SimulatedRaterConfig(PairSourceConfig):
    """Config of the rater."""

    name: Literal["simulated_rater"] = "simulated_rater"
    """Chooses this source; it needs `prompts.world`."""
    num_labels: int = 64
    """Pairs that the rater looks at in one refresh."""
    error_rate: float = 0.0
    """Share of labels that are turned round, in [0, 1)."""
    choose: Literal["disagreement", "random"] = "disagreement"
    """Which siblings are shown to the rater."""

    @property
    def needs_world(self) -> bool:
        """Whether it needs a world: its oracle is the rater."""
        return True

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if self.num_labels < 1 or not 0 <= self.error_rate < 1:
            raise ValueError(
                f"num_labels must be >= 1 and error_rate in [0, 1), got {self.num_labels} and {self.error_rate}"
            )


class SimulatedRater:
    """Labels pairs of siblings by the oracle."""

    config_class: ClassVar[type[Any]] = SimulatedRaterConfig

    def __init__(self, config: Any) -> None:
        """Keep the config."""
        self._config = config

    def pairs(self, candidates: Sequence[Candidate], tools: PairTools) -> list[tuple[int, VideoPair]]:
        """Return the labelled siblings; see `PairSource.pairs`."""
        shown = self._shown(candidates, tools)
        by_place = {one.place: one for one in candidates}
        return [
            (number, self._labelled(by_place[place], first, second, tools))
            for number, (_, place, first, second) in enumerate(shown)
            if place in by_place
        ]

    def _shown(self, candidates: Sequence[Candidate], tools: PairTools) -> list[tuple[float, int, int, int]]:
        """Return (priority, place of the prompt, sibling, sibling) of the pairs with the highest priority anywhere."""
        measure = self._chances if self._config.choose == "random" else self._margins
        siblings = [(one.place, *pair) for one in candidates for pair in combinations(range(len(one.frames)), 2)]
        # a process may have no candidate; sorted, so that sums do not depend on the number of processes
        offers = sorted(
            tools.gather(list(zip(siblings, measure(candidates, tools), strict=True))), key=lambda one: one[0]
        )
        if not offers:
            return []
        table = {name: torch.tensor([values[name] for _, values in offers]) for name in offers[0][1]}
        worth = table[CHANCE] if CHANCE in table else disagreement(table)
        valued = [(float(value), *place) for value, (place, _) in zip(worth, offers, strict=True)]
        return sorted(valued, key=lambda offer: (-offer[0], *offer[1:]))[: self._config.num_labels]

    @staticmethod
    def _chances(candidates: Sequence[Candidate], tools: PairTools) -> list[dict[str, float]]:
        """Return a random number for each two siblings."""
        draw = tools.draw.fork("siblings")
        return [
            {CHANCE: float(torch.rand((), generator=draw.generator(one.prompt.prompt_id, a * 1000 + b)))}
            for one in candidates
            for a, b in combinations(range(len(one.frames)), 2)
        ]

    @staticmethod
    def _margins(candidates: Sequence[Candidate], tools: PairTools) -> list[dict[str, float]]:
        """Return each judge's margin for each two siblings."""
        if not candidates:
            return []
        scores = tools.scores(candidates)
        margins = {name: torch.cat([sibling_margins(values) for values in table]) for name, table in scores.items()}
        return [dict(zip(margins, values, strict=True)) for values in torch.stack([*margins.values()], 1).tolist()]

    def _labelled(self, one: Candidate, first: int, second: int, tools: PairTools) -> VideoPair:
        assert tools.oracle is not None
        quality = [tools.oracle(one.frames[place], one.prompt.text) for place in (first, second)]
        draw = tools.draw.fork("rater").generator(one.prompt.prompt_id, first * 1000 + second)
        is_wrong = bool(torch.rand((), generator=draw) < self._config.error_rate)
        better, worse = (first, second) if (quality[0] >= quality[1]) != is_wrong else (second, first)
        return preferred(one.frames[better], one.frames[worse], one.prompt, fps=tools.fps, source="rater")


def sibling_margins(scores: Tensor) -> Tensor:
    """Return the differences [G (G - 1) / 2] of the scores [G] of every two siblings, in the order of combinations."""
    return torch.stack([scores[a] - scores[b] for a, b in combinations(range(len(scores)), 2)])


def disagreement(margins: Mapping[str, Tensor]) -> Tensor:
    """Return how much judges disagree about each of P pairs.

    Args:
        margins: judge -> first's score minus second's [P]; NaN where a score is missing.

    Returns:
        [P]: the variance over judges of their margins, each judge's divided by its own root mean square. With one judge,
        minus the size of its margin, so that the pairs that it finds hardest come first. A pair without all scores is worth
        least.
    """
    scaled = []
    for values in margins.values():
        finite = values[values.isfinite()]
        size = finite.square().mean().sqrt().clamp_min(MIN_SPREAD) if len(finite) else torch.tensor(1.0)
        scaled.append(values / size)
    table = torch.stack(scaled)  # [J, P]
    worth = table.var(0, unbiased=False) if len(table) > 1 else -table[0].abs()
    return torch.where(worth.isfinite(), worth, -torch.inf)
