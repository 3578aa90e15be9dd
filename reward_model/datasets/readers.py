"""The data sections of a recipe and the readers behind them, by kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from reward_model.datasets.base import read_manifest, read_pairs
from reward_model.datasets.natural import read_koniq, read_lsvq, read_vqathinker
from reward_model.datasets.stored import load_clips
from reward_model.datasets.video_r1 import read_video_r1, read_visionreward
from reward_model.records import DIMENSIONS, Annotation

LISTED: Mapping[str, Callable[[DataConfig], Sequence[Annotation]]] = {
    "stored": lambda data: load_clips(data.path),
    "manifest": lambda data: read_manifest(data.path, columns=data.columns or None),
    "pairs": lambda data: read_pairs(data.path, columns=data.columns or None),
    "koniq": lambda data: read_koniq(data.path, images=data.media or None, split=data.split or None),
    "lsvq": lambda data: read_lsvq(data.path, videos=data.media or None, split=data.split or None),
    "vqathinker": lambda data: read_vqathinker(data.path, videos=data.media or None),
    "video_r1": lambda data: _all_rows(data),
    "visionreward": lambda data: read_visionreward(data.path, videos=data.media or None),
}
"""Kind of data -> its reader."""


def _all_rows(data: DataConfig) -> list[Annotation]:
    low_high = (data.scale[0], data.scale[1]) if data.scale else None
    rows = read_video_r1(data.path, scale=low_high, folder=data.media or None)
    return [*rows.clips, *rows.pairs, *rows.questions]


_PUBLISHED = ("koniq", "lsvq", "vqathinker", "video_r1", "visionreward")


_READ_BY = {
    "media": _PUBLISHED,
    "split": ("koniq", "lsvq"),
    "scale": ("video_r1",),
    "columns": ("manifest", "pairs"),
    "images": ("moving_shapes",),
    "num_clips": ("moving_shapes",),
    "dimensions": ("moving_shapes",),
}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where rated clips come from."""

    kind: Literal[
        "moving_shapes", "stored", "manifest", "pairs", "koniq", "lsvq", "vqathinker", "video_r1", "visionreward"
    ]
    """moving_shapes renders clips without end; all others read a file: stored one of `training.sources.store_clips`,
    manifest (rated clips) and pairs an annotation file through `columns`, the rest the published form of that name."""
    path: str = ""
    """The file; not for moving_shapes."""
    media: str = ""
    """Folder of the images or videos; empty where they stand beside the file. Published forms only."""
    split: str = ""
    """Which of the authors' splits (koniq: training, validation, test; lsvq: train, test); empty takes all."""
    scale: list[float] = field(default_factory=list)
    """video_r1 only: lowest and highest rating of the file."""
    columns: dict[str, str] = field(default_factory=dict)
    """manifest and pairs only: our name -> the file's column (see datasets.base)."""
    clean_share: float = 0.25
    """moving_shapes only: share of clips without defects; more teach what is seen, fewer what is wrong with it."""
    images: bool = False
    """moving_shapes only: the middle frame of each clip, rated on visual quality alone, in the clip's place."""
    num_clips: int = 0
    """moving_shapes only: train on that many clips over and over, as where annotations are few; 0 renders without end."""
    dimensions: list[str] = field(default_factory=list)
    """moving_shapes only: what clips are rated on, all that it can be where empty; other files say so by their columns."""
    weight: float = 1.0
    """Share of a batch relative to the other data of the stage."""

    def __post_init__(self) -> None:
        """Check that files are named where they are needed, and only there."""
        if (self.kind == "moving_shapes") == bool(self.path):
            raise ValueError(
                f"data.path must be given for all kinds but moving_shapes, got {self.path!r} ({self.kind})"
            )
        for name, kinds in _READ_BY.items():
            if getattr(self, name) and self.kind not in kinds:
                raise ValueError(f"data.{name} is read for {', '.join(kinds)} only, got it with {self.kind}")
        if self.scale and len(self.scale) != 2:
            raise ValueError(f"data.scale must be two numbers, got {self.scale}")
        if unknown := sorted(set(self.dimensions) - set(DIMENSIONS)):
            raise ValueError(f"data.dimensions must be of {', '.join(DIMENSIONS)}, got {unknown[0]!r}")
        if self.images and self.dimensions not in ([], ["visual_quality"]):
            raise ValueError(f"data.images are rated on visual_quality, got dimensions {self.dimensions}")
        if self.weight <= 0:
            raise ValueError(f"data.weight must be > 0, got {self.weight}")
        if self.num_clips < 0 or self.num_clips == 1:
            raise ValueError(f"data.num_clips must be 0 or at least 2, got {self.num_clips}")
