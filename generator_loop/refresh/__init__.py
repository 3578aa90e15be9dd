"""The judge learns from the generator's newest clips: pair sources by name, anchors, acceptance."""

from generator_loop.refresh.new_beats_old import NewBeatsOld

PAIR_SOURCES = {"new_beats_old": NewBeatsOld}
"""Name, as in `refresh.pair_source`, to the class; see `refresh.base.PairSource` for its methods."""
