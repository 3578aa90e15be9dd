"""Decisions at a round's end: go on, return to the last good round, or stop, by measures that the reward does not see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from generator_loop.config import GuardsConfig

MEASURES: Mapping[str, str] = {"max_audit_drop": "reward_audit", "max_anchor_drop": "anchor_accuracy"}
"""Limit of the config -> the round's measure that may fall by no more below its best value so far."""


@dataclass(frozen=True)
class Decision:
    """The action after a round, and the sentence of its reason ("" where the run simply goes on)."""

    action: Literal["go_on", "return", "stop"]
    reason: str = ""


def decide(rounds: Sequence[Mapping[str, Any]], config: GuardsConfig, *, num_returns: int) -> Decision:
    """Decide after a round.

    Args:
        rounds: records of all rounds, the newest last; `is_good` false marks those that were returned from.
        config: the limits.
        num_returns: how often the run has returned so far.

    Returns:
        return where a measure fell by more than its limit and the config allows another return, else stop; go_on otherwise, with a
        reason where a measure that has a limit is missing.
    """
    *earlier, newest = rounds
    missing = [
        limit for limit, measure in MEASURES.items() if getattr(config, limit) is not None and newest[measure] is None
    ]
    for limit, measure in MEASURES.items():
        allowed, value = getattr(config, limit), newest[measure]
        known = [record[measure] for record in earlier if record[measure] is not None and record.get("is_good", True)]
        if allowed is None or value is None or not known or value >= max(known) - allowed:
            continue
        fell = f"{measure} fell from {max(known):.3g} to {value:.3g}, by more than guards.{limit}={allowed:g}"
        if num_returns < config.max_returns:
            return Decision("return", f"{fell}: the run returns to its last good round")
        return Decision("stop", f"{fell}, after {num_returns} returns: the run ends with its last good round")
    unwatched = [f"guards.{limit} watches nothing in this round: {MEASURES[limit]} is missing" for limit in missing]
    return Decision("go_on", "; ".join(unwatched))


SIDES: Mapping[str, Literal["below", "above"]] = {
    "anchor_accuracy": "below",
    "audit_gap": "above",
    "uncertainty": "above",
}
"""Measure, as in `refresh.triggers` -> on which side of its limit the judge is refreshed."""


def triggered(record: Mapping[str, Any], limits: Mapping[str, float]) -> tuple[str, ...]:
    """Return one sentence for each measure of a round that has passed the limit at which the judge is refreshed.

    Args:
        record: the newest round's.
        limits: measure -> limit.

    Returns:
        Sentences in the order of the limits; a measure that is missing says nothing.
    """
    sentences = []
    for name, limit in limits.items():
        value = record[name]
        if value is not None and (value < limit if SIDES[name] == "below" else value > limit):
            sentences.append(
                f"{name} is {value:.3g}, {SIDES[name]} refresh.triggers.{name}={limit:g}: the judge is refreshed"
            )
    return tuple(sentences)
