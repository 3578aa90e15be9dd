"""The verdict of a run, on summaries made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from generator_loop.tracking.verdict import verdict


def change(mean: float) -> dict[str, float]:
    """Return a change with bounds .01 to both sides."""
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}


def record(*, srcc: float | None = 0.77, diversity: float | None = 1.4) -> dict[str, Any]:
    """Return the figures of one round that the verdict reads."""
    return {"judge_oracle_srcc": srcc, "anchor_accuracy": None, "diversity": diversity, "flow_loss": None}


def summary(
    *, reward=0.1, oracle=0.1, audit=0.1, last=None, pairs=(0.85, 0.85), alarms=(), valid=1.0
) -> dict[str, Any]:
    """Return a summary of two rounds; None leaves a measure out."""
    changes = {"reward_initial_judge": change(reward)}
    changes |= {} if oracle is None else {"overall": change(oracle)}
    changes |= {} if audit is None else {"reward_audit": change(audit)}
    shares = [None if oracle is None else {"current": share, "num_pairs": 9} for share in pairs]
    return {
        "num_prompts": 64,
        "difference": changes,
        "before": {"oracle": None if oracle is None else {"overall": 0.3}},
        "rounds": [record(), last or record()],
        "pair_accuracy": dict(zip(("before", "after"), shares, strict=True)),
        "valid_fraction": valid,
        "alarms": list(alarms),
        "config": {"evaluation": {"num_round_prompts": 16}},
    }


def said(sentences, part: str):
    """Return the one sentence that holds these words."""
    (sentence,) = [sentence for sentence in sentences if part in sentence.text]
    return sentence


def test_a_confirmed_gain_without_side_effects_is_trusted() -> None:
    first, *reasons = verdict(summary())
    assert first.sign == "better" and "nothing that is watched got worse" in first.text
    assert said(reasons, "oracle's overall").text.endswith("rose (+0.100 [+0.090, +0.110] on all 64 held-out prompts).")


def test_a_gain_at_the_price_of_agreement_and_diversity_says_each_fall_and_its_prompts() -> None:
    first, *reasons = verdict(summary(last=record(srcc=0.629, diversity=0.926), pairs=(0.856, 0.753)))
    assert first.sign == "worse" and "it has a price" in first.text
    agreement = said(reasons, "rank agreement")
    assert agreement.sign == "worse"
    assert "fell from 0.770 to 0.629 (the first 16 of 64 held-out prompts)" in agreement.text
    assert "fell from 0.856 to 0.753 (all 64 held-out prompts)" in said(reasons, "clip pairs").text
    assert said(reasons, "diversity").sign == "worse"


@pytest.mark.parametrize("fallen", ["oracle", "audit"])
def test_a_reward_that_rises_while_an_independent_measure_falls_is_not_trusted(fallen: str) -> None:
    first, *_ = verdict(summary(**{fallen: -0.1}))
    assert first.sign == "worse"
    assert first.text == "Do not trust this run: the judge's reward rose while an independent measure fell."


def test_without_oracle_and_audit_nothing_is_claimed() -> None:
    first, *_ = verdict(summary(oracle=None, audit=None, last=record(srcc=None)))
    assert first.sign == "unknown" and "cannot be told" in first.text


def test_without_an_oracle_the_audit_judge_decides() -> None:
    first, *reasons = verdict(summary(oracle=None, last=record(srcc=None)))
    assert first.sign == "better" and not [reason for reason in reasons if "rank agreement" in reason.text]


def test_no_change_beyond_chance_is_no_gain() -> None:
    assert verdict(summary(reward=0.1, oracle=0.0, audit=0.0))[0].text.endswith("by no more than chance.")


def test_alarms_and_missing_scores_count_against_the_run() -> None:
    first, *reasons = verdict(summary(alarms=["a", "b"], valid=0.6))
    assert first.sign == "worse"
    assert said(reasons, "2 alarms were raised").sign == said(reasons, "40.0% of the held-out clips").sign == "worse"


def test_diversity_of_single_clips_is_not_measured() -> None:
    _, *reasons = verdict(summary(last=record(diversity=None)))
    assert said(reasons, "Diversity was not measured").sign == "unknown"


def test_a_run_that_a_guard_ended_says_why() -> None:
    first, *reasons = verdict({**summary(), "ended": "reward_audit fell from 0.6 to 0.2"})
    assert first.sign == "worse" and said(reasons, "A guard ended the run early: reward_audit fell").sign == "worse"
    assert not [one for one in verdict({**summary(), "ended": None}) if "guard" in one.text]
