"""Options of a request, as client and server share them: the client sends them, the server batches by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Readout = Literal["level", "reason"]
Normalize = Literal["unit", "raw", "z"]


@dataclass(frozen=True)
class ScoreOptions:
    """Options of `VideoJudgeReward.forward` that cross the wire; `weights` are sorted, so that equal options are equal."""

    dimensions: tuple[str, ...] | None
    weights: tuple[tuple[str, float], ...] | None
    readout: Readout
    num_samples: int
    normalize: Normalize

    @classmethod
    def of(
        cls,
        *,
        dimensions: Sequence[str] | None,
        weights: Mapping[str, float] | None,
        readout: Readout,
        num_samples: int,
        normalize: Normalize,
    ) -> ScoreOptions:
        """Return the options of a call, in a hashable form."""
        return cls(
            dimensions=None if dimensions is None else tuple(dimensions),
            weights=None if weights is None else tuple(sorted(weights.items())),
            readout=readout,
            num_samples=num_samples,
            normalize=normalize,
        )

    @property
    def weight_of(self) -> dict[str, float] | None:
        """Dimension -> weight; None for the overall score."""
        return None if self.weights is None else dict(self.weights)

    def fields(self) -> dict[str, object]:
        """Return the fields of a request body."""
        return {
            "dimensions": None if self.dimensions is None else list(self.dimensions),
            "weights": self.weight_of,
            "readout": self.readout,
            "num_samples": self.num_samples,
            "normalize": self.normalize,
        }


@dataclass(frozen=True)
class CompareOptions:
    """Options of a comparison."""

    swap: bool


@dataclass(frozen=True)
class ExplainOptions:
    """Options of an explanation; there are none."""


RequestOptions = ScoreOptions | CompareOptions | ExplainOptions
