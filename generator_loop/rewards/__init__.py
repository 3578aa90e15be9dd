"""Clips in, rewards and advantages out; further columns of the reward by name."""

from collections.abc import Mapping

from generator_loop.rewards.column import RewardColumn
from generator_loop.rewards.comparator import Comparator
from generator_loop.rewards.specialist import Specialist

COLUMNS: Mapping[str, type[RewardColumn]] = {"comparator": Comparator, "specialist": Specialist}
"""Name, as in `reward.columns`, to the class; a new one is its file and a line here."""


def column_configs() -> dict[str, type]:
    """Return name -> config class, from which the loader builds `reward.columns`."""
    return {name: column.config_class for name, column in COLUMNS.items()}
