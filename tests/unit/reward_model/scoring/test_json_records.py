"""Results as JSON: numbers that are not finite, pairs without a result, explanations; and merging an order."""

from __future__ import annotations

import math

import pytest
import torch

from reward_model.records import Comparison, Explanation
from reward_model.scoring.compare import merge_order
from reward_model.scoring.json_records import (
    comparison_records,
    explanation_record,
    number,
    unexplained_record,
    unscored_record,
)


def test_a_number_that_is_not_finite_is_null() -> None:
    assert [number(value) for value in (0.0, -2, torch.tensor(0.5), math.nan, math.inf, -math.inf)] == [
        0.0,
        -2.0,
        0.5,
        None,
        None,
        None,
    ]


def test_a_pair_without_a_result_has_no_verdict_about_its_orders() -> None:
    nan = math.nan
    comparison = Comparison(
        p_first=torch.tensor([0.75, 0.25, nan]),
        p_tie=torch.tensor([0.125, 0.0, nan]),
        margin=torch.tensor([0.5, -0.5, nan]),
        valid=torch.tensor([True, True, False]),
        reasons=["", "", "cannot be read"],
        consistent=torch.tensor([True, False, False]),
    )
    first, second, third = comparison_records(comparison, ["a dog", None, "a cat"])
    assert first == {
        "prompt": "a dog",
        "valid": True,
        "p_first": 0.75,
        "p_tie": 0.125,
        "margin": 0.5,
        "consistent": True,
        "reason": "",
    }
    assert (second["valid"], second["consistent"], second["margin"]) == (True, False, -0.5)
    assert third == {
        "prompt": "a cat",
        "valid": False,
        "p_first": None,
        "p_tie": None,
        "margin": None,
        "consistent": None,
        "reason": "cannot be read",
    }


@pytest.mark.parametrize("reason", ["", "no <answer>"])
def test_an_explanation_is_valid_where_its_answer_is_well_formed(reason: str) -> None:
    explanation = Explanation(
        text="sharp",
        quality={"overall": math.nan, "visual_quality": 0.5},
        levels={"overall": "good"},
        labels={"visual_quality": ("blur",)},
        saliency={"overall": torch.tensor([0.25, 0.75])},
        reason=reason,
        words="theirs",
    )
    assert explanation_record(explanation, "a dog") == {
        "prompt": "a dog",
        "valid": not reason,
        "reason": reason,
        "text": "sharp",
        "levels": {"overall": "good"},
        "scores": {"overall": None, "visual_quality": 0.5},
        "labels": {"visual_quality": ["blur"]},
        "saliency": {"overall": [0.25, 0.75]},
        "words": "theirs",
    }


def test_an_unreadable_video_has_a_reason_and_no_number() -> None:
    record = unscored_record("cannot be read", "a dog")
    assert record["valid"] is False and record["prompt"] == "a dog" and record["reward"] is None
    assert set(record["reasons"].values()) == {"cannot be read"} and not any(record["valid_dimensions"].values())
    assert all(value is None for name in ("scores", "std", "level_probs") for value in record[name].values())
    assert unexplained_record("cannot be read", None) == {
        "prompt": None,
        "valid": False,
        "reason": "cannot be read",
        "text": None,
        "levels": {},
        "scores": {},
        "labels": {},
        "saliency": {},
        "words": "",
    }


@pytest.mark.parametrize("num", range(8))
def test_a_merged_order_is_the_sorted_one_and_ties_keep_the_given_order(num: int) -> None:
    quality = [3, 1, 4, 1, 5, 2, 6][:num]
    order, num_compared = merge_order(range(num), lambda pairs: [quality[a] - quality[b] for a, b in pairs])
    assert order == sorted(range(num), key=lambda item: -quality[item])  # Python's sort is stable
    assert num_compared <= num * math.ceil(math.log2(max(num, 1)))
    assert (num_compared == 0) == (num < 2)
