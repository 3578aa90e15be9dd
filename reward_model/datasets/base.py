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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

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


Example = TypeVar("Example")


@dataclass(frozen=True)
class Fault:
    """A line of an annotation file that cannot be used: the media `file` where one is named, and the reason."""

    manifest: str
    line: int
    reason: str
    file: str = ""


def read_each(
    path: str | Path,
    records: Sequence[tuple[int, Mapping[str, object]]],
    read: Callable[[Mapping[str, object], str], Example],
    faults: list[Fault] | None,
    *,
    unit: str = "line",
) -> list[Example]:
    """Read numbered records one by one.

    Args:
        path: the annotation file.
        records: (number, record).
        read: returns the example of a record; its second argument is the place that messages name.
        faults: receives the records that cannot be read; None raises at the first.
        unit: of the numbers, "line" or "record".

    Returns:
        The examples, in the file's order.

    Raises:
        ValueError: A record cannot be read, and `faults` is None.
    """
    examples = []
    for number, record in records:
        try:
            examples.append(read(record, f"{path}, {unit} {number}"))
        except ValueError as error:
            if faults is None:
                raise
            faults.append(Fault(str(path), number, str(error), _named_media(record)))
    return examples


def _named_media(record: Mapping[str, object]) -> str:
    """Return the first media name of a record by the usual columns, for a message."""
    names = (record.get(name) for name in ("video", "path", "name", "image_name", "image", "path_A", "path1"))
    return next((str(name) for name in names if name), "")


def split_place(place: str) -> tuple[str, int]:
    """Return the file and the number of the line in a place such as "clips.csv, line 7"."""
    match = re.fullmatch(r"(.*), \w+ (\d+)", place, re.DOTALL)
    return (match[1], int(match[2])) if match else (place, 0)


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


def read_manifest(
    path: str | Path, *, columns: Mapping[str, str] | None = None, faults: list[Fault] | None = None
) -> list[RatedClip]:
    """Read rated clips.

    Args:
        path: .csv or .jsonl; video paths in it are relative to its folder.
        columns: our name ("video", "prompt", "source_id" or a dimension) -> the file's column, with its scale; columns
            that the map leaves out are not read. Without a map, the file's columns bear our names.
        faults: receives the lines that cannot be read; None refuses the file at the first.

    Returns:
        One clip per record, in the file's order. An empty cell means unknown; `source_id` defaults to the video's path.

    Raises:
        ValueError: The file, a column or a value is not as described; the message names file and line.
    """
    path = Path(path)
    records = read_numbered_records(path, faults=faults)
    chosen = _choose(path, records, columns, CLIP_COLUMNS, required=("video",))
    dimensions = [name for name in DIMENSIONS if name in chosen]
    if not dimensions:
        raise ValueError(f"{path}: no rated dimension; map at least one of {DIMENSIONS} to a column")

    def read(record: Mapping[str, object], place: str) -> RatedClip:
        """Return the clip of one line."""
        _refuse_shifted(record, place)
        video = _cell(record, chosen["video"])
        if not video:
            raise ValueError(f"{place}: no video in column {chosen['video'].name!r}")
        quality = {name: _quality(record, chosen[name], place) for name in dimensions}
        return RatedClip(
            video=path.parent / video,
            prompt=_cell(record, chosen.get("prompt")) or None,
            quality={name: value for name, value in quality.items() if value is not None},
            source_id=_cell(record, chosen.get("source_id")) or video,
            place=place,
        )

    return read_each(path, records, read, faults)


def read_pairs(
    path: str | Path, *, columns: Mapping[str, str] | None = None, faults: list[Fault] | None = None
) -> list[VideoPair]:
    """Read pairs labelled A (first is better), B or same.

    Args:
        path: .csv or .jsonl; video paths in it are relative to its folder.
        columns: our name ("first", "second", "prompt" or a dimension) -> the file's column; by default VideoAlign's.
        faults: as in `read_manifest`.

    Returns:
        One pair per record, in the file's order; an empty label means unknown.

    Raises:
        ValueError: The file, a column or a label is not as described; the message names file and line.
    """
    path = Path(path)
    records = read_numbered_records(path, faults=faults)
    chosen = _choose(path, records, columns, PAIR_COLUMNS, required=("first", "second"))
    dimensions = [name for name in DIMENSIONS if name in chosen]
    if not dimensions:
        raise ValueError(f"{path}: no labelled dimension; map at least one of {DIMENSIONS} to a column")

    def read(record: Mapping[str, object], place: str) -> VideoPair:
        """Return the pair of one line."""
        _refuse_shifted(record, place)
        first, second = (_cell(record, chosen[name]) for name in ("first", "second"))
        if not (first and second):
            raise ValueError(f"{place}: a pair needs two videos")
        labels = {name: _cell(record, chosen[name]) for name in dimensions}
        for name, label in labels.items():
            if label and label.lower() not in CHOICES:
                raise ValueError(f"{place}: {name} must be A, B or same, got {label!r}")
        prompt = _cell(record, chosen.get("prompt")) or None
        preference = {name: CHOICES[label.lower()] for name, label in labels.items() if label}
        source = f"{first}|{second}"
        return VideoPair(path.parent / first, path.parent / second, prompt, preference, source, place=place)

    return read_each(path, records, read, faults)


def _refuse_shifted(record: Mapping[Any, object], place: str) -> None:
    """Refuse a line of a CSV file with more cells than its header has, whose values stand in other columns."""
    extra = record.get(None)
    if isinstance(extra, list) and any(str(cell).strip() for cell in extra):
        raise ValueError(f"{place}: {len(extra)} more cells than the header; quote texts that hold a comma")


def read_records(path: str | Path) -> list[dict[str, object]]:
    """Read the records of an annotation file, without their line numbers; see `read_numbered_records`.

    Args:
        path: the file.

    Returns:
        Column name -> value of each record.

    Raises:
        ValueError: as there, or a line has more cells than the header.
    """
    records = read_numbered_records(path)
    for line, record in records:
        _refuse_shifted(record, f"{path}, line {line}")
    return [record for _, record in records]


def read_numbered_records(
    path: str | Path, *, faults: list[Fault] | None = None
) -> list[tuple[int, dict[str, object]]]:
    """Read a CSV file with a header, or a JSONL file with one object per line.

    Args:
        path: the file; UTF-8.
        faults: receives the lines of a JSONL file that hold no object; None refuses the file at the first.

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
        try:
            records: list[tuple[int, dict[str, object]]] = [(reader.line_num, record) for record in reader]
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error})") from error
    else:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        records = []
        for number, line in lines:
            try:
                records.append((number, _object(path, number, line)))
            except ValueError as error:
                if faults is None:
                    raise
                faults.append(Fault(str(path), number, str(error)))
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
