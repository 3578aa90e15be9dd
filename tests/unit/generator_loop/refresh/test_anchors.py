"""The map that keeps rewards of all rounds on the initial judge's scale."""

from __future__ import annotations

import math

import pytest
import torch

from generator_loop.refresh.anchors import Affine, reanchor


def test_reanchoring_undoes_an_affine_change_of_the_judge() -> None:
    initial = torch.tensor([0.1, 0.4, 0.8, math.nan])
    affine = reanchor(2 * initial - 0.3, initial)
    assert affine(2 * 0.6 - 0.3) == pytest.approx(0.6)


def test_a_judge_that_says_the_same_of_all_anchors_is_left_as_it_is() -> None:
    assert reanchor(torch.ones(3), torch.tensor([0.1, 0.2, 0.3])) == Affine()
