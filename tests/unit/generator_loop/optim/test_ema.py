"""Moving averages of weights."""

import pytest
import torch
from torch.testing import assert_close

from generator_loop.optim.ema import blend


def test_blend_is_a_weighted_mean():
    found = blend({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 6.0])}, decay=0.75)
    assert_close(found["w"], torch.tensor([1.5, 3.0]))


@pytest.mark.parametrize(("decay", "end"), [(0.0, "current"), (1.0, "average")])
def test_blend_is_exact_at_both_ends_and_never_an_alias(decay, end):
    noise = torch.Generator().manual_seed(0)
    weights = {name: {"w": torch.randn(100, generator=noise)} for name in ("average", "current")}
    found = blend(weights["average"], weights["current"], decay=decay)["w"]
    assert torch.equal(found, weights[end]["w"]) and found.data_ptr() != weights[end]["w"].data_ptr()


def test_weights_of_other_names_are_refused():
    with pytest.raises(ValueError, match="differ in names"):
        blend({"a": torch.zeros(1)}, {"b": torch.zeros(1)}, decay=0.5)


def test_a_decay_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 1.5"):
        blend({}, {}, decay=1.5)
