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


@pytest.mark.parametrize("at_once", [1, 2, 3, 8])
def test_few_merges_at_once_give_the_same_order_by_the_same_pairs_with_few_items_between_calls(at_once):
    worth = random.Random(0).sample(range(1000), 100)
    pairs_of, calls = {None: set(), at_once: set()}, []

    def margins_into(key):
        def margins(pairs):
            pairs_of[key].update(pairs)
            calls.append({item for pair in pairs for item in pair})
            return [worth[a] - worth[b] for a, b in pairs]

        return margins

    whole = merge_order(range(100), margins_into(None))
    calls.clear()
    assert merge_order(range(100), margins_into(at_once), at_once=at_once) == whole
    assert pairs_of[at_once] == pairs_of[None]
    assert max(map(len, calls)) == 2 * at_once
    # of the items of a call, each pair has at most one that the call before did not have, but where a merge begins
    new = [len(later - before) for before, later in zip(calls, calls[1:], strict=False)]
    assert sum(new) <= whole[1] + 100
