"""Readers of annotation files: CSV or JSONL with one record per rated clip or per labelled pair.

A column map names the file's columns by ours, for instance `{"video": "path", "visual_quality": "VQ[1,5]"}`. The
brackets state the file's own scale, which is mapped to quality in [0, 1]; without them the column is in [0, 1] already.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reward_model.dimensions import OVERALL, video_align_names
from reward_model.records import DIMENSIONS, RatedClip, VideoPair

VIDEO_COLUMNS = ("path", "video", "path_A")
"""Columns of the video of a list, where none is named; the first that the list has counts."""

CLIP_COLUMNS = {"video": "video", "prompt": "prompt", "source_id": "source_id"} | {name: name for name in DIMENSIONS}
"""Column map of a manifest that uses our own names."""

PAIR_COLUMNS = {
    "first": "path_A",
    "second": "path_B",
    "prompt": "prompt",
    **{name: column for column, name in video_align_names().items()},
    OVERALL: "Overall",
}
"""Column map of VideoAlign's pair files, whose labels are A, B and same."""

CHOICES = {"a": 1.0, "b": 0.0, "same": 0.5}


@dataclass(frozen=True)
class Column:
    """A column of the file and the scale of its values."""

    name: str
    low: float = 0.0
    high: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Column:
        """Read "name" or "name[low,high]"."""
        match = re.fullmatch(r"(.+?)\[\s*([-+.\w]+)\s*,\s*([-+.\w]+)\s*\]", text)
        if not match:
            return cls(text)
        try:
            low, high = float(match[2]), float(match[3])
        except ValueError:
            low = high = math.nan
        if not low < high:
            raise ValueError(f"columns: the scale of {text!r} must be two numbers [low,high] with low < high")
        return cls(match[1], low, high)


def read_manifest(path: str | Path, *, columns: Mapping[str, str] | None = None) -> list[RatedClip]:
    """Read rated clips.

    Args:
        path: .csv or .jsonl; video paths in it are relative to its folder.
        columns: our name ("video", "prompt", "source_id" or a dimension) -> the file's column, with its scale; columns
            that the map leaves out are not read. Without a map, the file's columns bear our names.

    Returns:
        One clip per record, in the file's order. An empty cell means unknown; `source_id` defaults to the video's path.

    Raises:
        ValueError: The file, a column or a value is not as described; the message names file and line.
    """
    path = Path(path)
    records = read_numbered_records(path)
    chosen = _choose(path, records, columns, CLIP_COLUMNS, required=("video",))
    dimensions = [name for name in DIMENSIONS if name in chosen]
    if not dimensions:
        raise ValueError(f"{path}: no rated dimension; map at least one of {DIMENSIONS} to a column")
    clips = []
    for line, record in records:
        video = _cell(record, chosen["video"])
        if not video:
            raise ValueError(f"{path}, line {line}: no video in column {chosen['video'].name!r}")
        quality = {name: _quality(record, chosen[name], f"{path}, line {line}") for name in dimensions}
        clips.append(
            RatedClip(
                video=path.parent / video,
                prompt=_cell(record, chosen.get("prompt")) or None,
                quality={name: value for name, value in quality.items() if value is not None},
                source_id=_cell(record, chosen.get("source_id")) or video,
            )
        )
    return clips


def read_pairs(path: str | Path, *, columns: Mapping[str, str] | None = None) -> list[VideoPair]:
    """Read pairs labelled A (first is better), B or same.

    Args:
        path: .csv or .jsonl; video paths in it are relative to its folder.
        columns: our name ("first", "second", "prompt" or a dimension) -> the file's column; by default VideoAlign's.

    Returns:
        One pair per record, in the file's order; an empty label means unknown.

    Raises:
        ValueError: The file, a column or a label is not as described; the message names file and line.
    """
    path = Path(path)
    records = read_numbered_records(path)
    chosen = _choose(path, records, columns, PAIR_COLUMNS, required=("first", "second"))
    dimensions = [name for name in DIMENSIONS if name in chosen]
    if not dimensions:
        raise ValueError(f"{path}: no labelled dimension; map at least one of {DIMENSIONS} to a column")
    pairs = []
    for line, record in records:
        first, second = (_cell(record, chosen[name]) for name in ("first", "second"))
        if not (first and second):
            raise ValueError(f"{path}, line {line}: a pair needs two videos")
        labels = {name: _cell(record, chosen[name]) for name in dimensions}
        for name, label in labels.items():
            if label and label.lower() not in CHOICES:
                raise ValueError(f"{path}, line {line}: {name} must be A, B or same, got {label!r}")
        prompt = _cell(record, chosen.get("prompt")) or None
        preference = {name: CHOICES[label.lower()] for name, label in labels.items() if label}
        pairs.append(VideoPair(path.parent / first, path.parent / second, prompt, preference, f"{first}|{second}"))
    return pairs


def read_records(path: str | Path) -> list[dict[str, object]]:
    """Read the records of an annotation file, without their line numbers; see `read_numbered_records`."""
    return [record for _, record in read_numbered_records(path)]


def read_numbered_records(path: str | Path) -> list[tuple[int, dict[str, object]]]:
    """Read a CSV file with a header, or a JSONL file with one object per line.

    Args:
        path: the file; UTF-8.

    Returns:
        (line of the file on which the record ends, column name -> value), in the file's order; values of a CSV are text.

    Raises:
        ValueError: The file is missing, of another kind, empty or malformed.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{path}: expected a .csv or .jsonl file")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        records: list[tuple[int, dict[str, object]]] = [(reader.line_num, record) for record in reader]
    else:
        lines = enumerate(text.split("\n"), start=1)
        records = [(number, _object(path, number, line)) for number, line in lines if line.strip()]
    if not records:
        raise ValueError(f"{path}: no records")
    return records


def _object(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}, line {number}: expected a JSON object, got {type(record).__name__}")
    return record


def _choose(
    path: Path,
    records: Sequence[tuple[int, Mapping[str, object]]],
    columns: Mapping[str, str] | None,
    defaults: Mapping[str, str],
    *,
    required: tuple[str, ...],
) -> dict[str, Column]:
    """Return our name -> column; mapped columns must exist, default ones are taken where they exist."""
    present = set().union(*(record for _, record in records))
    unknown = [name for name in columns or () if name not in defaults]
    if unknown:
        raise ValueError(f"columns: unknown name {unknown[0]!r}; expected some of {list(defaults)}")
    chosen = {name: Column.parse(text) for name, text in (columns or defaults).items()}
    if not columns and "video" in chosen and "video" not in present:
        known = [name for name in VIDEO_COLUMNS if name in present]
        chosen["video"] = Column.parse((known or VIDEO_COLUMNS)[0])
    if not columns:
        chosen = {name: column for name, column in chosen.items() if column.name in present or name in required}
    for name, column in chosen.items():
        if column.name not in present:
            raise ValueError(f"{path}: no column {column.name!r} (for {name}); it has {sorted(map(str, present))}")
    for name in required:
        if name not in chosen:
            raise ValueError(f"columns: {name!r} must be mapped to a column")
    return chosen


def _cell(record: Mapping[str, object], column: Column | None) -> str:
    value = None if column is None else record.get(column.name)
    return "" if value is None else str(value).strip()


def _quality(record: Mapping[str, object], column: Column, place: str) -> float | None:
    text = _cell(record, column)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"{place}: column {column.name!r} must hold a number, got {text!r}") from error
    if not column.low <= value <= column.high:
        raise ValueError(
            f"{place}: {column.name!r} is {value:g}, outside its scale [{column.low:g}, {column.high:g}]; "
            f"state the scale as {column.name}[low,high]"
        )
    return (value - column.low) / (column.high - column.low)
