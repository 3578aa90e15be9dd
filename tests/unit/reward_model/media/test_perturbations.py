"""Temporal perturbations: index maps that are seeded, never the identity, and do what their names say."""

import itertools

import pytest
import torch

from reward_model.media.perturbations import BLANK, MEAN_GREY, PERTURBATIONS, perturb, spread_order

LENGTHS = (2, 3, 4, 5, 6, 9, 12)
PERMUTATIONS = ("shuffle", "local_shuffle", "reverse")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def maps(name, num_frames, num_seeds=60):
    return [PERTURBATIONS[name](num_frames, seeded(seed)).tolist() for seed in range(num_seeds)]


@pytest.mark.parametrize("num_frames", LENGTHS)
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_no_map_is_the_identity(name, num_frames):
    found = maps(name, num_frames)
    assert all(len(order) == num_frames for order in found)
    assert list(range(num_frames)) not in found


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_one_frame_comes_back_as_it_is(name):
    assert maps(name, 1, 5) == [[0]] * 5


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_equal_seeds_give_equal_maps_and_other_seeds_others(name):
    assert maps(name, 9) == maps(name, 9)
    num_distinct = len({tuple(order) for order in maps(name, 9)})
    assert num_distinct == 1 if name == "reverse" else num_distinct > 20


@pytest.mark.parametrize("num_frames", LENGTHS)
@pytest.mark.parametrize("name", PERMUTATIONS)
def test_shuffles_and_reversal_lose_no_frame(name, num_frames):
    assert all(sorted(order) == list(range(num_frames)) for order in maps(name, num_frames))


def test_a_shuffle_draws_every_other_order():
    every = set(itertools.permutations(range(3))) - {(0, 1, 2)}
    assert {tuple(order) for order in maps("shuffle", 3)} == every


def test_a_local_shuffle_stays_in_its_window_and_moves_in_each():
    for order in maps("local_shuffle", 10):
        windows = [order[:4], order[4:8], order[8:]]
        assert [sorted(window) for window in windows] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert all(window != sorted(window) for window in windows)


def test_a_local_shuffle_moves_frames_of_a_full_window_by_the_documented_distance():
    # A uniform permutation of 4 moves by (16 - 1) / 12 = 1.25 on average; without the identity 24 / 23 times that.
    orders = maps("local_shuffle", 4, 600)
    mean = sum(abs(place - index) for order in orders for place, index in enumerate(order)) / (4 * len(orders))
    assert mean == pytest.approx(1.25 * 24 / 23, abs=0.06)


def test_reversal_is_the_mirrored_order():
    assert maps("reverse", 5, 1) == [[4, 3, 2, 1, 0]]


def test_jitter_moves_by_at_most_one_place_both_ways():
    steps = [index - place for order in maps("jitter", 9) for place, index in enumerate(order)]
    assert set(steps) == {-1, 0, 1}
    assert {order[0] for order in maps("jitter", 9)} == {0, 1}  # clamped at the border


@pytest.mark.parametrize("num_frames", LENGTHS)
def test_a_duplicated_frame_takes_the_places_of_others_in_order(num_frames):
    counts = set()
    for order in maps("duplicate", num_frames):
        (repeated,) = {index for index in order if order.count(index) > 1}
        counts.add(order.count(repeated) - 1)
        others = [index for index in order if index != repeated]
        assert others == sorted(set(others))
    assert counts == set(range(1, min(3, num_frames - 1) + 1))


@pytest.mark.parametrize("num_frames", LENGTHS)
def test_blanking_loses_one_to_three_frames_and_moves_none(num_frames):
    counts = set()
    for order in maps("blank", num_frames):
        counts.add(order.count(BLANK))
        assert all(index in (place, BLANK) for place, index in enumerate(order))
    assert counts == set(range(1, min(3, num_frames - 1) + 1))


def test_frames_follow_the_map():
    frames = torch.rand(6, 3, 4, 5, generator=seeded(1))
    found = perturb(frames, "shuffle", seeded(3))
    assert torch.equal(found, frames[PERTURBATIONS["shuffle"](6, seeded(3))])


@pytest.mark.parametrize(("colour", "expected"), [(None, (0.0, 0.0, 0.0)), (MEAN_GREY, (0.485, 0.456, 0.406))])
def test_lost_frames_are_black_unless_told_otherwise(colour, expected):
    frames = torch.full((5, 3, 2, 2), 0.75)
    found = perturb(frames, "blank", seeded(0), **({} if colour is None else {"blank_colour": colour}))
    lost = PERTURBATIONS["blank"](5, seeded(0)) == BLANK
    torch.testing.assert_close(
        found[lost], torch.tensor(expected)[None, :, None, None].expand(int(lost.sum()), 3, 2, 2)
    )
    assert torch.equal(found[~lost], frames[~lost])


def test_gradients_reach_the_frames_that_remain_only():
    frames = torch.rand(5, 3, 2, 2, generator=seeded(2)).requires_grad_()
    perturb(frames, "blank", seeded(0)).sum().backward()
    lost = PERTURBATIONS["blank"](5, seeded(0)) == BLANK
    assert torch.equal(frames.grad.flatten(1).amax(1), (~lost).float())


def test_unknown_names_and_shapes_are_refused():
    with pytest.raises(ValueError, match="perturbation must be one of shuffle"):
        perturb(torch.rand(4, 3, 2, 2), "rewind", seeded(0))
    with pytest.raises(ValueError, match=r"\[T, 3, H, W\]"):
        perturb(torch.rand(4, 3, 2), "shuffle", seeded(0))


def test_all_frames_move_with_the_planned_frame_next_to_them():
    order = torch.tensor([0, 2, 1])
    assert spread_order(order, (0, 4, 8), 9).tolist() == [0, 1, 2, 7, 8, 8, 8, 3, 4]
    lost = torch.tensor([0, BLANK, 2])
    assert spread_order(lost, (0, 4, 8), 9).tolist() == [0, 1, 2, BLANK, BLANK, BLANK, BLANK, 7, 8]


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_at_the_planned_places_all_frames_show_what_the_judge_is_shown(name):
    places = (0, 3, 5, 9, 12, 15)
    order = PERTURBATIONS[name](len(places), seeded(1))
    everything = spread_order(order, places, 16)
    shown = [BLANK if index == BLANK else places[index] for index in order.tolist()]
    assert everything[list(places)].tolist() == shown
    assert torch.equal(spread_order(order, range(len(order)), len(order)), order)
