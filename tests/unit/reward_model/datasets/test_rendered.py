"""Scenes of rendered clips: all training scenes are drawn, and those held out are of two halves that share none."""

import pytest

from reward_model.datasets.readers import DataConfig, open_source
from reward_model.toy_world import moving_shapes


@pytest.fixture
def asked(monkeypatch):
    """Return a function that gives the scenes asked for by clips of a part; pictures are small, for speed."""
    monkeypatch.setattr(
        moving_shapes.sample_rated, "__kwdefaults__", {**moving_shapes.sample_rated.__kwdefaults__, "size": 8}
    )

    def draw(part, num=640):
        return {clip.prompt for clip in open_source(DataConfig(kind="moving_shapes"), part=part)(0, num)}

    return draw


@pytest.fixture(scope="module")
def scenes():
    """Return the captions of the scenes to train on and of those held out, in order."""
    return tuple([moving_shapes.caption(one) for one in part] for part in moving_shapes.split(moving_shapes.CORE))


def test_weights_are_chosen_on_every_second_held_out_scene_and_judges_reported_on_the_others(asked, scenes):
    held_out = scenes[1]
    assert asked("selection") == set(held_out[::2])
    assert asked("report") == set(held_out[1::2])


def test_all_held_out_scenes_are_drawn_where_the_part_is_not_divided(asked, scenes):
    assert asked("held_out") == set(scenes[1])


def test_training_draws_from_the_training_scenes_at_every_place_of_their_list(asked, scenes):
    training, prompts = scenes[0], asked("train", 128)
    assert prompts < set(training)
    even, odd = (len(prompts & set(training[place::2])) for place in (0, 1))
    assert 1 / 3 < even / len(prompts) < 2 / 3 and even + odd == len(prompts)
