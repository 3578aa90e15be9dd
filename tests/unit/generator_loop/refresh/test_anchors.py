"""The map that keeps rewards of all rounds on the initial judge's scale."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from generator_loop.refresh.anchors import Affine, anchor_accuracy, exact_accuracy, reanchor
from reward_model.records import RatedClip


def test_reanchoring_undoes_an_affine_change_of_the_judge() -> None:
    initial = torch.tensor([0.1, 0.4, 0.8, math.nan])
    affine = reanchor(2 * initial - 0.3, initial)
    assert affine(2 * 0.6 - 0.3) == pytest.approx(0.6)


def test_a_judge_that_says_the_same_of_all_anchors_is_left_as_it_is() -> None:
    assert reanchor(torch.ones(3), torch.tensor([0.1, 0.2, 0.3])) == Affine()


def rated(*qualities: float) -> list[RatedClip]:
    """Return clips of these overall qualities."""
    return [RatedClip(torch.zeros(1), None, {"overall": quality}, str(n)) for n, quality in enumerate(qualities)]


def scores_with(num_right: int, num_pairs: int) -> tuple[dict[str, torch.Tensor], list[RatedClip]]:
    """Return scores of one bad and `num_pairs` good clips, of which `num_right` score higher than the bad one."""
    good = [1.0] * num_right + [-1.0] * (num_pairs - num_right)
    return {"overall": torch.tensor([0.0, *good])}, rated(0.0, *[1.0] * num_pairs)


@pytest.mark.parametrize(("num_right", "num_pairs"), [(7, 10), (1, 3), (3, 7), (9, 11), (0, 5), (5, 5)])
def test_accuracy_is_the_share_to_the_last_digit(num_right: int, num_pairs: int) -> None:
    scores, clips = scores_with(num_right, num_pairs)
    assert anchor_accuracy(scores, clips) == num_right / num_pairs
    assert exact_accuracy(scores, clips) == Fraction(num_right, num_pairs)


def test_accuracy_is_the_mean_over_dimensions_that_have_pairs() -> None:
    clips = [
        RatedClip(torch.zeros(1), None, {"overall": q, "visual_quality": 1 - q, "motion_quality": 0.5}, str(n))
        for n, q in enumerate((0.0, 0.5, 1.0))
    ]
    up = torch.tensor([0.1, 0.2, 0.3])
    scores = {"overall": up, "visual_quality": torch.tensor([0.3, 0.1, 0.2]), "motion_quality": up}
    assert exact_accuracy(scores, clips) == (1 + Fraction(2, 3)) / 2
    assert exact_accuracy({"overall": torch.tensor([0.1, 0.1, 0.2])}, clips) == Fraction(
        2, 3
    )  # equal scores order nothing


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.3), (0.7, 0.8), (0.8, 0.9), (0.0, 0.1), (0.35, 0.45)])
def test_qualities_one_tenth_apart_are_a_pair_however_they_round(low: float, high: float) -> None:
    assert anchor_accuracy({"overall": torch.tensor([0.1, 0.2])}, rated(low, high)) == 1.0
    with pytest.raises(ValueError, match=r"differs by 0\.1"):
        anchor_accuracy({"overall": torch.tensor([0.1, 0.2])}, rated(low, high - 1e-6))
