"""Preference pairs: a generated clip beats its own damaged copy, which is right by construction."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from generator_loop.refresh.base import Candidate, PairSourceConfig, PairTools, any_clip, preferred
from reward_model import distort
from reward_model.records import VideoPair


@dataclass(frozen=True, kw_only=True)
class CleanBeatsDistortedConfig(PairSourceConfig):
    """Config of the pairs of generated clips and damaged copies."""

    name: Literal["clean_beats_distorted"] = "clean_beats_distorted"
    """Chooses this source."""
    defects: tuple[str, ...] = ("blur", "noise", "grain", "h264", "flicker", "jitter", "stutter", "freeze", "warp")
    """Kinds of damage, of which each copy gets one; names of `reward_model.media.distortions.DEFECTS`."""
    min_severity: float = 1.0
    """Least severity, in (0, 4]; slighter damage is hard to see."""
    max_severity: float = 4.0
    """Greatest severity, at most 4."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if not 0 < self.min_severity <= self.max_severity <= 4:
            raise ValueError(
                f"min_severity and max_severity must rise in (0, 4], got {self.min_severity} and {self.max_severity}"
            )
        if not self.defects:
            raise ValueError("defects must name at least one kind of damage")


class CleanBeatsDistorted:
    """One pair for each prompt."""

    config_class: ClassVar[type[Any]] = CleanBeatsDistortedConfig

    def __init__(self, config: Any) -> None:
        """Keep the config; ValueError for an unknown defect."""
        self._config = config
        for name in config.defects:
            distort(torch.zeros(1, 3, 8, 8), name, 0, generator=torch.Generator(), fps=1.0)

    def pairs(self, candidates: Sequence[Candidate], tools: PairTools) -> list[tuple[int, VideoPair]]:
        """Return the pair of every prompt whose clip the damage changes; see `PairSource.pairs`."""
        made = [(one.place, self._pair(one, tools)) for one in candidates]
        return [(place, pair) for place, pair in made if pair is not None]

    def _pair(self, candidate: Candidate, tools: PairTools) -> VideoPair | None:
        draw = tools.draw.fork("clean beats distorted")
        clip, generator = any_clip(candidate, draw), draw.generator(candidate.prompt.prompt_id, 1)
        choose = random.Random(generator.initial_seed())
        defect = choose.choice(self._config.defects)
        severity = choose.uniform(self._config.min_severity, self._config.max_severity)
        damaged = distort(clip, defect, severity, generator=generator, fps=tools.fps)
        if torch.equal(clip, damaged):  # a clip without motion cannot freeze
            return None
        return preferred(clip, damaged, candidate.prompt, fps=tools.fps, source=f"clean beats {defect}")
