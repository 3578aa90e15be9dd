"""Moving averages of weights."""

import pytest
import torch
from torch.testing import assert_close

from generator_loop.optim.ema import follow


def test_the_average_moves_to_a_weighted_mean_in_place():
    average = torch.tensor([1.0, 2.0])
    follow({"w": average}, {"w": torch.tensor([3.0, 6.0])}, decay=0.75)
    assert_close(average, torch.tensor([1.5, 3.0]))


@pytest.mark.parametrize(("decay", "end"), [(0.0, "current"), (1.0, "average")])
def test_it_is_exact_at_both_ends_and_leaves_the_current_weights_alone(decay, end):
    noise = torch.Generator().manual_seed(0)
    weights = {name: {"w": torch.randn(100, generator=noise)} for name in ("average", "current")}
    before = {name: one["w"].clone() for name, one in weights.items()}
    follow(weights["average"], weights["current"], decay=decay)
    assert torch.equal(weights["average"]["w"], before[end]) and torch.equal(weights["current"]["w"], before["current"])
    assert weights["average"]["w"].data_ptr() != weights["current"]["w"].data_ptr()


def test_weights_of_other_names_are_refused():
    with pytest.raises(ValueError, match="differ in names"):
        follow({"a": torch.zeros(1)}, {"b": torch.zeros(1)}, decay=0.5)


def test_a_decay_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 1.5"):
        follow({}, {}, decay=1.5)
