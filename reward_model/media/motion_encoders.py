"""Choice of a judge's motion encoder by name, in recipes and saved judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from reward_model.media.motion import (
    MotionEncoder,
    PlannedFramesEncoder,
    TemporalDifferences,
    WholeClipEncoder,
    cached,
)
from reward_model.media.slowfast import SlowFastR50


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """A judge's motion encoder and the folder of its features."""

    encoder: Literal["temporal_differences", "slowfast_r50"] = "temporal_differences"
    """temporal_differences needs no weights; slowfast_r50 needs a local checkpoint."""
    path: str = ""
    """slowfast_r50 only: its checkpoint."""
    tokens: Literal["each_second", "one_of_planned"] = "each_second"
    """each_second: a token for each second of all frames at their own rate. one_of_planned: one token of the few frames that the
    judge is shown (VQAThinker), which cannot show frame rate or stutter."""
    segment_seconds: float = 1.0
    """temporal_differences with each_second only: seconds of a token."""
    cache: str = ""
    """Folder of computed features, by content; empty computes them each time."""

    def __post_init__(self) -> None:
        """Check that slowfast_r50, and no other encoder, has a checkpoint."""
        if (self.encoder == "slowfast_r50") != bool(self.path):
            raise ValueError(f"motion.path names the checkpoint of slowfast_r50, got {self.path!r} for {self.encoder}")


@lru_cache(maxsize=4)
def build_encoder(config: MotionConfig) -> MotionEncoder:
    """Return the encoder that a configuration names; the same one for the same configuration."""
    whole: WholeClipEncoder = TemporalDifferences(segment_seconds=config.segment_seconds)
    if config.encoder == "slowfast_r50":
        whole = SlowFastR50(config.path)
    encoder: MotionEncoder = PlannedFramesEncoder(whole) if config.tokens == "one_of_planned" else whole
    return cached(encoder, config.cache) if config.cache else encoder


def encoder_of(settings: Mapping[str, Any]) -> MotionEncoder | None:
    """Return the encoder that a judge's configuration names in `motion`; None for a judge that sees frames only.

    Args:
        settings: fields of `MotionConfig`, and "feature_size".

    Returns:
        The encoder.

    Raises:
        ValueError: its features are not of the size that the judge was trained with.
    """
    if not settings:
        return None
    encoder = build_encoder(MotionConfig(**{name: v for name, v in settings.items() if name != "feature_size"}))
    if encoder.feature_size != settings["feature_size"]:
        raise ValueError(
            f"the encoder gives {encoder.feature_size} features, the judge takes {settings['feature_size']}"
        )
    return encoder
