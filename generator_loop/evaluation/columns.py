"""The table of an evaluation and the names of its columns: judges, and the sources beside them.

Shape legend: N clips, those of one prompt consecutive; T pixel frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from generator_loop.tracking.metric_log import finite_or_none

INITIAL, CURRENT, AUDIT = "initial", "current", "audit"
"""The judges that look at an evaluation: as it was at the start, as it is, and the one that never learns."""


Measure = Callable[[Tensor, str], Mapping[str, float]]
"""measure(frames [T, C, H, W], prompt) -> named numbers."""


ORACLE, OPEN, SPREAD = "oracle", "open", "latents/spread"
"""Sources of columns beside the judges: the world's oracle, the features that prompts leave open, and the spread of latents."""
UNCERTAINTY = "uncertainty"
"""Source of the spread of each judge's ratings."""


@dataclass(frozen=True)
class Evaluation:
    """Measurements of N clips: `columns` maps "source/dimension" to N numbers, NaN where missing.

    `prompt_ids` [N] names each clip's prompt.
    """

    prompt_ids: tuple[int, ...]
    columns: Mapping[str, tuple[float, ...]]

    def first(self, num_prompts: int) -> Evaluation:
        """Return the evaluation of the first `num_prompts` prompts only."""
        kept = list(dict.fromkeys(self.prompt_ids))[:num_prompts]
        num = sum(prompt_id in set(kept) for prompt_id in self.prompt_ids)
        return Evaluation(self.prompt_ids[:num], {name: column[:num] for name, column in self.columns.items()})

    def mean(self, name: str) -> float:
        """Return the mean of a column over the clips that have it; NaN without any."""
        finite = [value for value in self.columns.get(name, ()) if math.isfinite(value)]
        return sum(finite) / len(finite) if finite else math.nan

    def to_json(self) -> dict[str, Any]:
        """Return the table as values that JSON can hold; a missing number is None."""
        columns = {name: [finite_or_none(value) for value in column] for name, column in self.columns.items()}
        return {"prompt_ids": list(self.prompt_ids), "columns": columns}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any] | None) -> Evaluation | None:
        """Return the table that `to_json` wrote; None stays None."""
        if saved is None:
            return None
        columns = {name: tuple(map(_number, column)) for name, column in saved["columns"].items()}
        return cls(tuple(saved["prompt_ids"]), columns)

    def means(self, source: str) -> dict[str, float]:
        """Return dimension -> mean of one source; empty if nothing was measured."""
        prefix = f"{source}/"
        return {name.removeprefix(prefix): self.mean(name) for name in self.columns if name.startswith(prefix)}


def _number(value: float | None) -> float:
    return math.nan if value is None else value
