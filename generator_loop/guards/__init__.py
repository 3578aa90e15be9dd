"""Guards watch for reward hacking: each reads an iteration's statistics and objects to what looks wrong."""

from collections.abc import Mapping

from generator_loop.guards.base import Guard
from generator_loop.guards.drift import Drift
from generator_loop.guards.missing_scores import MissingScores

GUARDS: Mapping[str, Guard] = {
    "motion": Drift("motion", low=0.4, high=3.0),
    "edges": Drift("edges", low=0.4, high=3.0),
    "saturation": Drift("saturation", low=0.5, high=2.0),
    "group_spread": Drift("group_spread", low=0.4, high=2.5),
    "missing_scores": MissingScores(max_fraction=0.1),
}
"""Name to guard, in the order in which they are asked; a further guard is its file and a line here."""
