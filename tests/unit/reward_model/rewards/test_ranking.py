"""The order of a group by few comparisons."""

import math
import random

import pytest

from reward_model.scoring.compare import merge_order


@pytest.mark.parametrize("num", [0, 1, 2, 3, 5, 8, 13, 32])
def test_a_judge_without_doubt_gives_the_true_order_in_few_comparisons(num):
    worth = {item: value for item, value in enumerate(random.Random(num).sample(range(100), num))}
    asked = []

    def margins(pairs):
        asked.extend(pairs)
        return [worth[a] - worth[b] for a, b in pairs]

    order, num_compared = merge_order(range(num), margins)
    assert order == sorted(worth, key=worth.__getitem__, reverse=True)
    assert num_compared == len(asked) == len(set(asked))
    assert num_compared <= (num * math.ceil(math.log2(num)) if num else 0)
    assert num < 5 or num_compared < num * (num - 1) / 2


def test_merges_of_one_level_share_their_calls():
    calls = []

    def margins(pairs):
        calls.append(len(pairs))
        return [a - b for a, b in pairs]

    assert merge_order(range(8), margins)[0] == list(range(8))[::-1]
    assert calls[:3] == [4, 2, 2]


def test_ties_keep_the_order_and_a_circle_still_gives_one():
    assert merge_order([3, 1, 2], lambda pairs: [0.0] * len(pairs))[0] == [3, 1, 2]
    beats = {(0, 1), (1, 2), (2, 0)}
    found, _ = merge_order(range(3), lambda pairs: [1.0 if pair in beats else -1.0 for pair in pairs])
    assert sorted(found) == [0, 1, 2]
