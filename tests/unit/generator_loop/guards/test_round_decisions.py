"""A round's end: go on, return to the last good round, or stop; and when measures ask for a refresh."""

from __future__ import annotations

from typing import Any

import pytest

from generator_loop.config import TRIGGERS, GuardsConfig
from generator_loop.guards.rounds import MEASURES, SIDES, decide, triggered


def rounds(
    *audits: float | None, good: tuple[bool, ...] = (), anchors: tuple[float | None, ...] = ()
) -> list[dict[str, Any]]:
    """Return records of rounds."""
    return [
        {
            "reward_audit": audit,
            "anchor_accuracy": anchors[place] if anchors else None,
            "is_good": good[place] if place < len(good) else True,
        }
        for place, audit in enumerate(audits)
    ]


@pytest.mark.parametrize(
    ("audits", "good", "num_returns", "action"),
    [
        ((0.5,), (), 0, "go_on"),
        ((0.5, 0.41), (), 0, "go_on"),
        ((0.5, 0.39), (), 0, "return"),
        ((0.5, 0.6, 0.49), (), 0, "return"),
        ((0.5, 0.6, 0.51), (), 0, "go_on"),
        ((0.5, 0.9, 0.49), (True, False), 1, "go_on"),
        ((0.5, 0.39, 0.38), (True, False), 1, "return"),
        ((0.5, 0.39, 0.38), (True, False), 2, "stop"),
        ((0.5, None), (), 0, "go_on"),
        ((None, 0.5), (), 0, "go_on"),
    ],
)
def test_a_fall_below_the_best_good_round_returns_and_then_stops(
    audits: tuple[float | None, ...], good: tuple[bool, ...], num_returns: int, action: str
) -> None:
    config = GuardsConfig(max_audit_drop=0.1, max_returns=2)
    assert decide(rounds(*audits, good=good), config, num_returns=num_returns).action == action


def test_either_measure_may_object_and_the_reason_names_it_with_its_numbers() -> None:
    config = GuardsConfig(max_audit_drop=0.1, max_anchor_drop=0.02, max_returns=0)
    decision = decide(rounds(0.5, 0.5, anchors=(0.9, 0.87)), config, num_returns=0)
    assert decision.action == "stop"
    assert decision.reason.startswith("anchor_accuracy fell from 0.9 to 0.87, by more than guards.max_anchor_drop=0.02")
    assert (
        decide(rounds(0.5, 0.1, anchors=(0.9, 0.9)), GuardsConfig(max_anchor_drop=0.02), num_returns=0).action
        == "go_on"
    )


def test_a_guard_whose_measure_is_missing_says_that_it_watches_nothing() -> None:
    config = GuardsConfig(max_audit_drop=0.1)
    decision = decide(rounds(0.5, None), config, num_returns=0)
    assert decision.action == "go_on" and decision.reason == (
        "guards.max_audit_drop watches nothing in this round: reward_audit is missing"
    )
    assert decide(rounds(0.5, 0.5), config, num_returns=0).reason == ""
    assert decide(rounds(0.5, None), GuardsConfig(), num_returns=0).reason == ""


def test_measures_beyond_their_limit_ask_for_a_refresh() -> None:
    record = {"anchor_accuracy": 0.8, "audit_gap": 0.2, "uncertainty": None}
    assert triggered(record, {}) == ()
    assert triggered(record, {"anchor_accuracy": 0.8, "audit_gap": 0.2, "uncertainty": 0.0}) == ()
    first, second = triggered(record, {"audit_gap": 0.19, "anchor_accuracy": 0.81})
    assert first.startswith("audit_gap is 0.2, above refresh.triggers.audit_gap=0.19")
    assert second.startswith("anchor_accuracy is 0.8, below refresh.triggers.anchor_accuracy=0.81")


def test_every_measure_has_a_side_and_every_limit_a_setting() -> None:
    assert set(SIDES) == set(TRIGGERS)
    assert all(hasattr(GuardsConfig(), limit) for limit in MEASURES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_target": 0.0}, "guards.kl_target must be > 0"),
        ({"kl_fraction": 0.0}, r"guards.kl_fraction must be in \(0, 1\]"),
        ({"max_audit_drop": -0.1}, "guards.max_audit_drop must be >= 0"),
        ({"data_weight": -1.0}, "guards.data_weight must be >= 0"),
    ],
)
def test_guards_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GuardsConfig(**settings)  # type: ignore[arg-type]
