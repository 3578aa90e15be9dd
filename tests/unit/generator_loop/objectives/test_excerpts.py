"""The excerpt of latent frames that is decoded: its places, the whole clip, and lengths that do not fit."""

from __future__ import annotations

import pytest
import torch

from generator_loop.objectives.base import check_decoded, drawn_excerpt
from generator_loop.records import Draw

LATENTS = torch.zeros(2, 4, 5, 2, 2)


def test_every_place_of_an_excerpt_is_drawn() -> None:
    places = [drawn_excerpt(3, LATENTS, Draw(0, step)) for step in range(60)]
    assert {place.start for place in places if place is not None} == {0, 1, 2}
    assert all(place is not None and len(place) == 3 for place in places)
    assert drawn_excerpt(5, LATENTS, Draw(0, 0)) == range(5)
    assert drawn_excerpt(None, LATENTS, Draw(0, 0)) is None


@pytest.mark.parametrize("length", [6, 7, 50])
def test_an_excerpt_longer_than_the_clip_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"at most the clip's 5 latent frames, got {length}"):
        drawn_excerpt(length, LATENTS, Draw(0, 0))


def test_at_least_one_latent_frame_is_decoded() -> None:
    for allowed in (None, 1, 2):
        check_decoded(allowed)
    with pytest.raises(ValueError, match="must be >= 1 or null, got 0"):
        check_decoded(0)
