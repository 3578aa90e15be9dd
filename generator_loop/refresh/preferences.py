"""Preference pairs that people labelled, from a file that may grow while the run goes on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from generator_loop.refresh.base import Candidate, PairSourceConfig, PairTools
from reward_model import read_pairs
from reward_model.records import VideoPair

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PreferencesConfig(PairSourceConfig):
    """Config of the pairs of a file."""

    name: Literal["preferences"] = "preferences"
    """Chooses this source."""
    path: str
    """CSV or JSONL of labelled pairs with an overall preference; VideoAlign's columns unless `columns` maps others."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our name (first, second, prompt, overall) -> the file's column; empty reads VideoAlign's."""


class Preferences:
    """All pairs of the file, read anew at each refresh by the first process; ties count half, pairs without an overall label are left out."""

    config_class: ClassVar[type[Any]] = PreferencesConfig

    def __init__(self, config: Any) -> None:
        """Read the file once, so that a wrong one is refused at the start (ValueError)."""
        self._config = config
        self._read()

    def pairs(self, candidates: Sequence[Candidate], tools: PairTools) -> list[tuple[int, VideoPair]]:
        """Return the file's pairs; see `PairSource.pairs`."""
        return list(enumerate(self._read_again())) if tools.rank == 0 else []

    def _read_again(self) -> list[VideoPair]:
        """Return the pairs of a file that someone may be writing to: lines that cannot be read are left out, and named."""
        faults: list[Any] = []
        try:
            pairs = self._read(faults)
        except (ValueError, OSError) as error:
            log.warning("this refresh goes without labelled pairs: %s", error)
            return []
        for fault in faults:
            log.warning("labelled pair left out: %s, line %d: %s", fault.manifest, fault.line, fault.reason)
        return pairs

    def _read(self, faults: list[Any] | None = None) -> list[VideoPair]:
        pairs = read_pairs(self._config.path, columns=self._config.columns or None, faults=faults)
        return [pair for pair in pairs if "overall" in pair.preference]
