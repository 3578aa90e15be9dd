"""The data sections of a recipe and the one table of readers behind them.

A further reader is one file of this folder and one entry of `READERS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from reward_model.config import did_you_mean
from reward_model.datasets.base import Fault, read_manifest, read_pairs
from reward_model.datasets.natural import read_koniq, read_lsvq, read_vqathinker
from reward_model.datasets.rendered import open_moving_shapes
from reward_model.datasets.sources import Listed, Part, Source, open_listed
from reward_model.datasets.stored import load_clips
from reward_model.datasets.video_r1 import read_video_r1, read_visionreward
from reward_model.dimensions import OVERALL
from reward_model.records import DIMENSIONS, Annotation, VideoPair

Keep = Callable[[str, Sequence[Annotation], Sequence[Fault]], Sequence[Annotation]]
"""keep(file, examples, faults) -> the examples that can be used, of those that were read; `faults` are the lines that were
not."""

ReadFile = Callable[["DataConfig", "list[Fault] | None"], Sequence[Annotation]]
"""read(data, faults) -> the examples of a file; lines that cannot be read go to `faults`, or raise without it."""


@dataclass(frozen=True)
class Reader:
    """One kind of data.

    `open(data, part, keep)` returns the source of a part of its examples, of a list only those that `keep` keeps; `fields`
    are those of `DataConfig` that it reads beside kind and weight. A reader of "path" needs one. All examples of a `still`
    reader are images.
    """

    open: Callable[[DataConfig, Part, Keep], Source]
    fields: tuple[str, ...]
    still: bool = False


def listed(read: Callable[[DataConfig], Sequence[Annotation]], *fields: str) -> Reader:
    """Return the reader of a file whose examples `read` lists; `fields` are those that it reads beside path."""
    return lenient(lambda data, faults: read(data), *fields)


def lenient(read: ReadFile, *fields: str) -> Reader:
    """Return the reader of a file whose unreadable lines `read` gives to a list of faults; see `listed`."""
    return Reader(partial(_open_file, read), ("path", "hold_out", *fields))


def _open_file(read: ReadFile, data: DataConfig, part: Part, keep: Keep) -> Source:
    faults: list[Fault] = []
    examples = keep(data.path, read(data, faults), faults)
    if not data.hold_out:
        return Listed(examples if part == "train" else ())
    return open_listed(examples, part=part, name=data.path)


def refuse_faults(path: str, examples: Sequence[Annotation], faults: Sequence[Fault]) -> Sequence[Annotation]:
    """Return all examples of a file, each of whose lines must have been readable."""
    if faults:
        raise ValueError(faults[0].reason)
    return examples


def _open_rendered(data: DataConfig, part: Part, keep: Keep) -> Source:
    return open_moving_shapes(
        clean_share=data.clean_share,
        images=data.images,
        num_clips=data.num_clips,
        dimensions=data.dimensions,
        part=part,
    )


def _read_video_r1(data: DataConfig, faults: list[Fault] | None) -> list[Annotation]:
    scale = (data.scale[0], data.scale[1]) if data.scale else None
    content = read_video_r1(data.path, scale=scale, folder=data.media or None, faults=faults)
    return [*content.clips, *_wanted(content.pairs, data), *content.questions]


def _wanted(pairs: Sequence[VideoPair], data: DataConfig) -> list[VideoPair]:
    """Return the pairs, without those that tie overall where the section leaves ties out."""
    return [pair for pair in pairs if data.ties or pair.preference.get(OVERALL) != 0.5]


READERS: dict[str, Reader] = {
    "moving_shapes": Reader(_open_rendered, ("clean_share", "images", "num_clips", "dimensions")),
    "stored": listed(lambda data: load_clips(data.path)),
    "manifest": lenient(
        lambda data, faults: read_manifest(data.path, columns=data.columns or None, faults=faults), "columns"
    ),
    "pairs": lenient(
        lambda data, faults: _wanted(read_pairs(data.path, columns=data.columns or None, faults=faults), data),
        "columns",
        "ties",
    ),
    "koniq": dataclasses.replace(
        lenient(
            lambda data, faults: read_koniq(
                data.path, images=data.media or None, split=data.split or None, faults=faults
            ),
            "media",
            "split",
        ),
        still=True,
    ),
    "lsvq": lenient(
        lambda data, faults: read_lsvq(data.path, videos=data.media or None, split=data.split or None, faults=faults),
        "media",
        "split",
    ),
    "vqathinker": lenient(
        lambda data, faults: read_vqathinker(data.path, videos=data.media or None, faults=faults), "media"
    ),
    "video_r1": lenient(_read_video_r1, "media", "scale", "ties"),
    "visionreward": lenient(
        lambda data, faults: _wanted(read_visionreward(data.path, videos=data.media or None, faults=faults), data),
        "media",
        "ties",
    ),
}
"""Kind of data -> its reader."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where rated clips come from."""

    kind: str
    """One of `READERS`: moving_shapes renders clips without end, all others read a file: stored one of
    `datasets.stored.store_clips`, manifest (rated clips) and pairs an annotation file through `columns`, the rest the
    published form of that name."""
    path: str = ""
    """The file; not for moving_shapes."""
    media: str = ""
    """Folder of the images or videos; empty where they stand beside the file. Published forms only."""
    split: str = ""
    """Which of the authors' splits (koniq: training, validation, test; lsvq: train, test); empty takes all."""
    scale: list[float] = field(default_factory=list)
    """video_r1 only: lowest and highest rating of the file."""
    ties: bool = True
    """pairs, visionreward and video_r1 only: keep pairs whose clips are as good as each other; false leaves them out, for a
    comparator with two answers."""
    hold_out: bool = True
    """Keep a tenth of a file's sources out of training, to measure on; false trains on all of them, as papers do whose test sets are
    other files."""
    columns: dict[str, str] = field(default_factory=dict)
    """manifest and pairs only: our name -> the file's column (see datasets.base)."""
    clean_share: float = 0.25
    """moving_shapes only: share of clips without defects; raising it teaches more of what a clip shows, less of its faults."""
    images: bool = False
    """moving_shapes only: the middle frame of each clip, rated on visual quality alone, in the clip's place."""
    num_clips: int = 0
    """moving_shapes only: train on that many clips epoch by epoch, as where annotations are few; 0 renders without end."""
    dimensions: list[str] = field(default_factory=list)
    """moving_shapes only: dimensions that clips are rated on; empty takes all. Other files say so by their columns."""
    weight: float = 1.0
    """Share of a batch relative to the other data of the stage."""

    def __post_init__(self) -> None:
        """Check the kind, that its reader reads every setting that is given, and ranges."""
        if self.kind not in READERS:
            raise ValueError(f"data.kind is {self.kind!r}{did_you_mean(self.kind, list(READERS))}")
        for name in self._given():
            if name not in READERS[self.kind].fields:
                kinds = [kind for kind, reader in READERS.items() if name in reader.fields]
                raise ValueError(f"data.{name} is read for {', '.join(kinds)} only, got it with {self.kind}")
        if "path" in READERS[self.kind].fields and not self.path:
            raise ValueError(f"data.path must be given for {self.kind}")
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

    def _given(self) -> list[str]:
        """Return the names of the settings, kind and weight aside, that differ from their defaults."""
        options = [item for item in dataclasses.fields(self) if item.name not in ("kind", "weight")]
        return [item.name for item in options if getattr(self, item.name) not in (item.default, [], {})]


def open_source(config: DataConfig, *, part: Part = "train", keep: Keep = refuse_faults) -> Source:
    """Return the source that a data section names.

    Args:
        config: the section.
        part: of the data; training never sees the others: scenes held out by `moving_shapes.split`, or, of listed examples,
            the tenth of the sources that `is_held_out` names.
        keep: chooses the examples of a file that can be used; by default a line that cannot be read is refused.

    Returns:
        The source.

    Raises:
        ValueError: Nothing is left to train on, or the file or a line cannot be read.
    """
    return READERS[config.kind].open(config, part, keep)
