"""The verdict on a training run in plain sentences: rises, falls, and how far the judge can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

MIN_SHARE = 0.02
"""Least change of a rank agreement or an accuracy that counts as one."""
MIN_FACTOR = 0.05
"""Least relative change of diversity and flow loss that counts as one."""
MIN_VALID = 0.95
"""Share of clips with a valid score below which the means no longer speak for all clips."""

Sign = Literal["better", "worse", "same", "unknown"]


@dataclass(frozen=True)
class Sentence:
    """One finding, and whether it speaks for the run or against it."""

    text: str
    sign: Sign


def verdict(summary: Mapping[str, Any]) -> tuple[Sentence, ...]:
    """Return the conclusion, and then each finding that it rests on.

    Args:
        summary: content of `summary.json`.

    Returns:
        At least the conclusion.
    """
    measures, judge, side = _measures(summary), _agreement(summary), _side_effects(summary)
    if summary.get("ended"):
        side = [*side, Sentence(f"A guard ended the run early: {summary['ended']}.", "worse")]
    return (_conclusion(measures, (*judge, *side)), *measures.values(), *judge, *side)


def _conclusion(measures: Mapping[str, Sentence], others: Sequence[Sentence]) -> Sentence:
    independent = [measures[name].sign for name in ("oracle", "audit") if name in measures]
    worse = any(sentence.sign == "worse" for sentence in others)
    if "worse" in independent:
        gamed = measures["reward"].sign == "better"
        why = "the judge's reward rose while an independent measure fell" if gamed else "an independent measure fell"
        return Sentence(f"Do not trust this run: {why}.", "worse")
    if not set(independent) - {"unknown"}:
        text = "Whether the videos got better cannot be told: neither an oracle nor an audit judge measured this run."
        return Sentence(f"{text} Look at the clips.", "unknown")
    if "better" not in independent:
        return Sentence(
            "This run changed the independent measures by no more than chance.", "worse" if worse else "same"
        )
    if worse:
        text = "The gain is confirmed by an independent measure, but it has a price, listed below."
        return Sentence(f"{text} Look at the clips before training longer against this judge.", "worse")
    return Sentence("The gain is confirmed by an independent measure, and nothing that is watched got worse.", "better")


def _measures(summary: Mapping[str, Any]) -> dict[str, Sentence]:
    """Return a sentence on the reward, and on each independent measure that the run has."""
    prompts, changes = f"all {summary['num_prompts']} held-out prompts", summary["difference"]
    named = {"reward": ("reward_initial_judge", "The reward of the judge as it was")}
    if summary["before"]["oracle"]:
        named["oracle"] = ("overall", "The oracle's overall score, which nobody learns from,")
    if "reward_audit" in changes:
        named["audit"] = ("reward_audit", "The audit judge's reward, which nobody learns from,")
    return {key: _changed(label, changes.get(name), prompts) for key, (name, label) in named.items()}


def _changed(label: str, change: Mapping[str, float | None] | None, prompts: str) -> Sentence:
    if change is None or change["mean"] is None or change["low"] is None or change["high"] is None:
        return Sentence(f"{label} was not measured.", "unknown")
    interval = f"({change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}] on {prompts})"
    if change["low"] > 0:
        return Sentence(f"{label} rose {interval}.", "better")
    if change["high"] < 0:
        return Sentence(f"{label} fell {interval}.", "worse")
    return Sentence(f"{label} changed by no more than chance {interval}.", "same")


def _agreement(summary: Mapping[str, Any]) -> list[Sentence]:
    """Return sentences on whether the judge still agrees with the measures that it cannot influence."""
    first, last = summary["rounds"][0], summary["rounds"][-1]
    prompts = round_prompts(summary)
    sentences = [
        figure_moved("The judge's rank agreement with the oracle", first, last, "judge_oracle_srcc", prompts),
        figure_moved("The judge's accuracy on labelled anchors", first, last, "anchor_accuracy", "held-out anchors"),
    ]
    before, after = (summary["pair_accuracy"][side] or {} for side in ("before", "after"))
    all_prompts = f"all {summary['num_prompts']} held-out prompts"
    sentences.append(
        figure_moved(
            "The share of clip pairs that the judge orders as the oracle does", before, after, "current", all_prompts
        )
    )
    return [sentence for sentence in sentences if sentence is not None]


def _side_effects(summary: Mapping[str, Any]) -> list[Sentence]:
    """Return sentences on diversity, clean clips, missing scores and alarms."""
    first, last, prompts = summary["rounds"][0], summary["rounds"][-1], round_prompts(summary)
    diversity = figure_moved("The diversity of clips of one prompt", first, last, "diversity", prompts, relative=True)
    loss = figure_moved(
        "The flow loss on clean clips", first, last, "flow_loss", "fixed clips", relative=True, falls=True
    )
    sentences = [diversity or Sentence("Diversity was not measured (it needs evaluation.num_seeds > 1).", "unknown")]
    sentences += [loss] if loss is not None else []
    valid, alarms = summary["valid_fraction"], len(summary["alarms"])
    if valid < 1:
        text = f"{1 - valid:.1%} of the held-out clips have no score at the end and are left out of the means."
        sentences.append(Sentence(text, "worse" if valid < MIN_VALID else "same"))
    if alarms:
        text = f"{alarms} alarm{'s were' if alarms > 1 else ' was'} raised in training; they are listed under Alarms."
        sentences.append(Sentence(text, "worse"))
    return sentences


def figure_moved(
    label: str,
    first: Mapping[str, Any],
    last: Mapping[str, Any],
    name: str,
    prompts: str,
    *,
    relative: bool = False,
    falls: bool = False,
) -> Sentence | None:
    """Return how a figure moved from the first to the last record, None where either lacks it; `falls` is better down."""
    before, after = first.get(name), last.get(name)
    if before is None or after is None:
        return None
    least = MIN_FACTOR * abs(before) if relative else MIN_SHARE
    where = f"from {before:.3f} to {after:.3f} ({prompts})"
    if abs(after - before) < least:
        return Sentence(f"{label} stayed about the same, {where}.", "same")
    rose = after > before
    return Sentence(f"{label} {'rose' if rose else 'fell'} {where}.", "better" if rose != falls else "worse")


def round_prompts(summary: Mapping[str, Any]) -> str:
    """Return in words which prompts the figures of rounds are of."""
    num, total = summary["config"]["evaluation"]["num_round_prompts"], summary["num_prompts"]
    return f"all {total} held-out prompts" if num >= total else f"the first {num} of {total} held-out prompts"
