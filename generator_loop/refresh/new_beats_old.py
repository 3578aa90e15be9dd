"""Preference pairs: the newest policy's best clip of a prompt beats the worst that an older policy drew for it.

Source: VQ-Insight (arXiv 2506.18564), stage 3, step 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from generator_loop.refresh.base import Candidate, PairSourceConfig, PairTools, preferred
from reward_model.records import VideoPair


@dataclass(frozen=True, kw_only=True)
class NewBeatsOldConfig(PairSourceConfig):
    """Config of VQ-Insight's pairs, which state that the generator made progress, as the judge already believes."""

    name: Literal["new_beats_old"] = "new_beats_old"
    """Chooses this source."""


class NewBeatsOld:
    """One pair for each prompt."""

    config_class: ClassVar[type[Any]] = NewBeatsOldConfig

    def __init__(self, config: Any) -> None:
        """Take the config, whose weight the refresh reads."""

    def pairs(self, candidates: Sequence[Candidate], tools: PairTools) -> list[tuple[int, VideoPair]]:
        """Return a pair of every prompt that has scores on both sides; see `PairSource.pairs`."""
        return [
            (one.place, preferred(one.best, one.rejected, one.prompt, fps=tools.fps, source="new beats old"))
            for one in candidates
            if one.best is not None and one.rejected is not None
        ]
