"""The judge learns from the generator's newest clips: pair sources by name, anchors, acceptance."""

from collections.abc import Mapping

from generator_loop.refresh.base import PairSource
from generator_loop.refresh.clean_beats_distorted import CleanBeatsDistorted
from generator_loop.refresh.new_beats_old import NewBeatsOld
from generator_loop.refresh.preferences import Preferences
from generator_loop.refresh.real_beats_generated import RealBeatsGenerated
from generator_loop.refresh.simulated_rater import SimulatedRater

PAIR_SOURCES: Mapping[str, type[PairSource]] = {
    "new_beats_old": NewBeatsOld,
    "real_beats_generated": RealBeatsGenerated,
    "clean_beats_distorted": CleanBeatsDistorted,
    "preferences": Preferences,
    "simulated_rater": SimulatedRater,
}
"""Name, as in `refresh.sources`, to the class; see `refresh.base.PairSource` for its contract."""


def pair_source_configs() -> dict[str, type]:
    """Return name -> config class, from which the loader builds `refresh.sources`."""
    return {name: source.config_class for name, source in PAIR_SOURCES.items()}
